"""Metrics computed from the accuracy matrix, their records, and confidence intervals over seeds."""
