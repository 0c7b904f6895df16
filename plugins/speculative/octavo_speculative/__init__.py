"""Proposers of Octavo, each an entry point of its own."""
