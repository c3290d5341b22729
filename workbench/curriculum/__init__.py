"""Staging data from general to specialist, and two memories against forgetting; yields examples, knows no trainer."""
