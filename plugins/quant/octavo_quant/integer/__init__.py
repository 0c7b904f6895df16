"""Checkpoints with integer weights and 16-bit activations: GPTQ, AWQ, auto-round, SqueezeLLM, and INT4 made here."""
