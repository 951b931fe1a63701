"""The loop over tasks and the callbacks that take part in it."""
