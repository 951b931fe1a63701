"""Build, check, run and load the objects that a configuration describes."""
