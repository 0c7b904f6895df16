"""The progress bar: on a terminal only."""

from __future__ import annotations

import io
import sys
import time

import pytest

from octavo.loading.progress import progress_bar


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "drawn"), [(Terminal(), True), (io.StringIO(), False)])
def test_bar(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, drawn: bool) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("smollm2") as report:
        report(512, 2048, "a.weight")
        time.sleep(0.15)  # tqdm draws at most ten times a second
        report(2048, 2048, "b.weight")
    assert ("smollm2" in stream.getvalue()) is drawn
    assert ("2.00k" in stream.getvalue()) is drawn
