"""The process that ``octavo bench startup`` starts: an engine, one request, one token.

Reads a JSON object from standard input: ``sections`` of the launch configuration, ``input`` tokens of prompt and
``seed``. Writes JSON lines with the device's name as ``machine``: ``ready`` when the engine is, ``token`` when the
first token is there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from octavo.errors import OctavoError
from octavo_bench.engine import running, timed
from octavo_bench.sizes import Size, random_jobs


def main(task: dict[str, Any]) -> None:
    """Start, answer, end."""
    with running(task["sections"]) as engine:
        machine = engine.context.device.name
        _tell("ready", machine)
        jobs = random_jobs([Size(task["input"], 1)], engine.context.model.vocab_size, task["seed"])
        timed(engine, jobs)
        _tell("token", machine)


def _tell(event: str, machine: str) -> None:
    print(json.dumps({"event": event, "machine": machine}), flush=True)


if __name__ == "__main__":
    try:
        main(json.load(sys.stdin))
    except OctavoError as error:
        sys.exit(str(error))
