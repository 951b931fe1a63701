"""The loop over tasks and its callbacks."""
