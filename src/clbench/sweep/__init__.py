"""Sweeps: which runs there are, where they lie, how long they take, what came out."""

from clbench.sweep.results import REFERENCES

__all__ = ["REFERENCES"]
