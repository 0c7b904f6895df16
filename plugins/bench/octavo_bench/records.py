"""What is kept of a measurement: one line a figure, with all that is needed to repeat it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import importlib_metadata

import octavo
from octavo.errors import ConfigError

UNITS: Final = {"tok_s": "tok/s", "requests_s": "requests/s", "ms": "ms", "s": "s", "requests": "requests"}
_BESIDE: Final = ("torch", "triton", "transformers")
_LOCAL: Final = ("--json", "--plot", "--profile", "--commit")  # of no use to who repeats it


@dataclass(frozen=True, slots=True)
class Record:
    """A figure. ``value`` is the median of ``repeats``, which are in the order of measurement."""

    workload: str
    metric: str
    value: float
    unit: str
    machine: str
    commit: str
    date: str
    command: str
    versions: Mapping[str, str]
    repeats: Sequence[float]


@dataclass(frozen=True, slots=True)
class Origin:
    """What all figures of one run share."""

    workload: str
    machine: str
    commit: str
    command: str
    versions: Mapping[str, str]

    def record(self, metric: str, repeats: Sequence[float]) -> Record:
        """One figure, dated now."""
        return Record(
            workload=self.workload,
            metric=metric,
            value=statistics.median(repeats),
            unit=unit_of(metric),
            machine=self.machine,
            commit=self.commit,
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            command=self.command,
            versions=self.versions,
            repeats=list(repeats),
        )


def origin(workload: str, machine: str, words: Sequence[str], commit: str | None = None) -> Origin:
    """``words`` follow ``octavo bench`` on the command line; without ``commit`` it is asked of git."""
    return Origin(workload, machine, commit or current_commit(), command(words), installed())


def unit_of(metric: str) -> str:
    """The unit of a metric, from its name: ``output_tok_s_on`` is in tokens a second, ``ttft_ms_p99`` in ms."""
    for ending, unit in UNITS.items():
        if f"_{ending}_" in f"_{metric}_":
            return unit
    return ""


def append(records: Iterable[Record], path: str) -> None:
    """Add the records to a file; what an earlier run wrote there stays. Raises :class:`ConfigError`."""
    try:
        target = Path(path).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8") as stream:
            stream.writelines(
                json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n" for record in records
            )
    except OSError as error:
        raise ConfigError(f"--json {path}: {error}.") from error


def installed() -> dict[str, str]:
    """Versions of Octavo, Python and what computes; imports none of them."""
    found = {"octavo": octavo.__version__, "python": platform.python_version()}
    for name in _BESIDE:
        try:
            found[name] = importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            continue
    return found


def current_commit() -> str:
    """The commit of the checkout that Octavo runs from, ``-dirty`` with changes; else Octavo's version."""
    source = Path(octavo.__file__)
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return f"octavo {octavo.__version__}"
    head = _git(source.parent, "rev-parse", "--short=12", "HEAD")
    changed = _git(source.parent, "status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    return f"{head}-dirty" if changed else f"{head}"


def _git(folder: Path, *arguments: str) -> str | None:
    command = ("git", "--no-optional-locks", *arguments)
    try:
        finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def command(words: Sequence[str]) -> str:
    """The command line, of paths only their last part, without the files that it wrote."""
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip or (equals and name in _LOCAL):
            skip = False
        elif name in _LOCAL:
            skip = True
        else:
            kept.append(_portable(word))
    return " ".join(["octavo bench", *kept])


def _portable(word: str) -> str:
    name, equals, value = word.partition("=")
    if not equals or "/" in name:
        name, equals, value = "", "", word
    if "/" in value and "://" not in value:
        value = Path(value).name
    return f"{name}{equals}{value}"
