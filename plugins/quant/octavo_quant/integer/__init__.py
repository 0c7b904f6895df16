"""Weights of a few bits, 16-bit activations: GPTQ, AWQ, auto-round, SqueezeLLM, GGUF, INT4 made while loading."""
