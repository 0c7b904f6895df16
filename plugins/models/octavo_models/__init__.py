"""Architectures beyond the core's Llama, each an entry point of its own."""
