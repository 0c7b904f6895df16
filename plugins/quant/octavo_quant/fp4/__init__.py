"""FP4 with scales for small groups: NVFP4 and MXFP4; and MXFP8."""
