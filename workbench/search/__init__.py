"""Looking for good settings: sweeps over ratios, a search for recipes, few-shot tables."""
