"""Plan, run and summarise sweeps."""
