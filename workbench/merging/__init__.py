"""Merging models in weight space: one frozen recipe, and executors that carry it out."""
