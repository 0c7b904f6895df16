"""Layers and architectures of the core, written for N ranks."""
