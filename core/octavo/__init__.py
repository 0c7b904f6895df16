"""Octavo: an LLM inference and serving engine whose every subsystem is a plugin.

Importing this package imports neither torch nor transformers; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.engine.async_engine import AsyncEngine as AsyncEngine
    from octavo.engine.llm import LLM as LLM
    from octavo.engine.outputs import RequestOutput as RequestOutput
    from octavo.hookspecs import hookimpl as hookimpl
    from octavo.params import SamplingParams as SamplingParams
    from octavo.structured import StructuredOutputs as StructuredOutputs

__version__ = "0.1.0"

_LAZY = {
    "LLM": "octavo.engine.llm",
    "AsyncEngine": "octavo.engine.async_engine",
    "RequestOutput": "octavo.engine.outputs",
    "SamplingParams": "octavo.params",
    "StructuredOutputs": "octavo.structured",
    "hookimpl": "octavo.hookspecs",
}
__all__ = ["LLM", "AsyncEngine", "RequestOutput", "SamplingParams", "StructuredOutputs", "__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
