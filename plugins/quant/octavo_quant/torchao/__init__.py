"""Checkpoints of torchao in safetensors."""
