"""Frozen skills as one bank, and a weight for each, as a PEFT method."""
