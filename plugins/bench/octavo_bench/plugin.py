"""Plugin `bench`: adds ``octavo bench``. Light to import; what measures is imported when it is asked for."""

from __future__ import annotations

from typing import Any

from octavo.hookspecs import hookimpl
from octavo_bench.command import configure, run

OCTAVO_API = (1, 0)


@hookimpl
def octavo_commands(app: Any) -> None:
    """Contribute ``bench``."""
    app.add("bench", "Measure throughput, latency, start-up, or a server.", configure, run)
