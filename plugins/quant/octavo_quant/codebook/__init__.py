"""Four-bit codes that stand for numbers in a table, with scales: NF4, FP4, NVFP4, MXFP4."""
