"""Quantisation schemes of Octavo, each an entry point of its own."""
