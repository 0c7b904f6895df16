"""Settings of a process that computes on its CPU."""

from __future__ import annotations

import ctypes
import logging

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_HEAP_BLOCK = 32 * 2**20  # the most that glibc accepts
_log = logging.getLogger("octavo.run")


def prepare_cpu(threads: int) -> None:
    """Use ``threads`` threads, and keep freed memory.

    By default glibc hands large temporaries back to the system, so that each step faults its activations in page
    by page: measured at up to four times the cost of an elementwise operation over 1,024 tokens.
    """
    torch.set_num_threads(threads)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        _log.info("this C library has no mallopt: freed memory may be handed back between steps")
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
