"""Strategies in the training loops of other libraries. No other part of clbench imports them."""
