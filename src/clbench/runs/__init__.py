"""What runs and sweeps leave on disk, written and read without torch."""
