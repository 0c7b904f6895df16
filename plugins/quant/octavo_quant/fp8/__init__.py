"""FP8 (e4m3) weights with a scale a tensor, a channel or a block; activations with one a token, or a fixed one."""
