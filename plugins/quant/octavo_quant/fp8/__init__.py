"""FP8 (e4m3) weights: one scale a tensor, a channel or a block; activations quantised a token or by a fixed scale."""
