"""Plugins: finding, checking and loading them, and the typed face the rest of the core sees of them."""
