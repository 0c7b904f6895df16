"""Structured outputs on llguidance."""
