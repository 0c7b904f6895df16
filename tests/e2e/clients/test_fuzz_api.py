"""Schemathesis, briefly; ``fuzz.py`` is the long version."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("schemathesis")


@pytest.mark.slow
def test_the_api_keeps_to_its_document(url):
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    done = module.fuzz(url, 5)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
