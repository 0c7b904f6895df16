"""INT8 weights and INT8 activations, as checkpoints bring them."""
