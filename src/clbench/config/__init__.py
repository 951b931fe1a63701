"""Options, error messages and terminal output."""
