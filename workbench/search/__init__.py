"""Looking for good settings: sweeps over ratios."""
