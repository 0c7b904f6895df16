"""Checkpoints of compressed-tensors (llm-compressor)."""
