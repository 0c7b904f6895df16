"""Attention over the paged KV cache in Triton, for NVIDIA GPUs."""
