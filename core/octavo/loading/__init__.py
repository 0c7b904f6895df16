"""Loading: what a checkpoint is (profile), and its tensors into the weight slots of a model (loaders)."""
