"""Checkpoints of bitsandbytes: NF4, FP4 and INT8."""
