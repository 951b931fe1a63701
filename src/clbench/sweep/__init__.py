"""Sweeps: the runs of a grid, their folders, their duration and their results."""
