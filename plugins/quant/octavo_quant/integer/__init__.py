"""Checkpoints with integer weights and 16-bit activations: GPTQ, AWQ, auto-round; and INT4 made while loading."""
