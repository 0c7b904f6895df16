"""The progress bar of loading: on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from octavo.contracts.loading import Progress


@contextmanager
def progress_bar(title: str = "Loading weights") -> Iterator[Progress]:
    """A :data:`Progress` that draws a bar of bytes on stderr; silent where stderr is not a terminal."""
    bar: tqdm[Any] = tqdm(
        desc=title,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        leave=False,
        disable=not sys.stderr.isatty(),
    )

    def report(done: int, total: int, name: str) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield report
