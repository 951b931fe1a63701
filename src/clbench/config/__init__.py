"""What a user types and reads: options, one-line messages, and what is shown in the terminal."""
