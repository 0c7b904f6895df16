"""Hooks compose, objects run: no hook is called while steps run."""

from __future__ import annotations

from pathlib import Path

import pluggy
import pytest

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama


def test_no_hook_is_called_in_the_step_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(str(tiny_llama(tmp_path))) as llm:
        steps = llm.stats().steps

        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("a hook was called in the step loop")

        with monkeypatch.context() as patch:
            patch.setattr(pluggy.HookCaller, "__call__", refuse)
            llm.generate([[5, 6, 7], [8, 9]], SamplingParams(temperature=0.7, max_tokens=50, ignore_eos=True))
        assert llm.stats().steps - steps >= 50
