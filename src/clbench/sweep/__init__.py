"""Sweeps: which runs there are, how long they take, and what came out."""
