"""Fused operations of a decoder layer as Triton kernels. What each means: :mod:`octavo.ops.reference`."""
