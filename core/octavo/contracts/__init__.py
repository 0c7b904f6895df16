"""Contracts: one file a slot. What the core calls, and what a plugin's object must answer. No implementations."""
