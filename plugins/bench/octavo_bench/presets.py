"""The workloads by which Octavo is compared, as options of ``octavo bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from octavo_bench.sizes import Lengths


@dataclass(frozen=True, slots=True)
class Preset:
    """``options`` by the names of the command's arguments; ``metrics`` are the figures it is known by, all if
    empty; ``sections`` are of the launch configuration."""

    command: str
    shape: str
    options: Mapping[str, Any]
    metrics: tuple[str, ...] = ()
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _throughput(shape: str, requests: int, input: Lengths, output: Lengths, **options: Any) -> Preset:
    values = {"dataset": "random", "requests": requests, "input_len": input, "output_len": output}
    metric = options.pop("metric", "output_tok_s")
    sections = options.pop("sections", {})
    return Preset("throughput", shape, {"prefix_cache": "off", **values, **options}, (metric,), sections)


def _latency(shape: str, batch: int, input: int, output: int) -> Preset:
    options = {"batch": batch, "input_len": _fixed(input), "output_len": _fixed(output), "prefix_cache": "off"}
    metrics = ("itl_ms", "ttft_ms") if batch == 1 else ("itl_ms", "ttft_ms", "output_tok_s")
    return Preset("latency", shape, options, metrics)


def _fixed(tokens: int) -> Lengths:
    return Lengths(tokens, tokens)


_UP_TO_1024: Final = Lengths(100, 1024)

PRESETS: Final[Mapping[str, Preset]] = {
    "W1": _throughput("8b", 1024, _fixed(512), _fixed(256)),
    "W2": _latency("8b", 1, 128, 256),
    "W2b8": _latency("8b", 8, 128, 256),
    "W2b32": _latency("8b", 32, 128, 256),
    "W3": _throughput("70b", 512, _fixed(512), _fixed(256), sections={"scheduler": {"max_sequences": 512}}),
    "W3b1": _latency("70b", 1, 128, 128),
    "W3b32": _latency("70b", 32, 128, 128),
    "W4": _throughput(
        "8b", 512, _fixed(64), _fixed(64), dataset="shared-prefix", prefix_len=2048, prefix_cache="both"
    ),
    "W5": _throughput("0.6b", 256, _UP_TO_1024, _UP_TO_1024, temperature=0.6),
    "W6": _throughput("8b", 8, _fixed(7900), _fixed(1), metric="input_tok_s"),
    "W7": Preset("startup", "8b", {}),
    "W8": _throughput("8b", 256, _fixed(512), _fixed(128)),
}


def names_of(command: str) -> list[str]:
    """The presets of one command."""
    return [name for name, preset in PRESETS.items() if preset.command == command]
