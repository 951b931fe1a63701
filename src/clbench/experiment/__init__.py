"""From a configuration to objects, checked, run, and loaded back."""
