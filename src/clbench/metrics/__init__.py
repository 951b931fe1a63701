"""Metrics: formulas on the accuracy matrix, their records, and intervals over seeds."""
