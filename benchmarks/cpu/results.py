"""What is kept of a comparison: one line a figure, with all that is needed to repeat it."""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
Key: TypeAlias = tuple[str, str, str]  # workload, metric, engine


@dataclass(frozen=True, slots=True)
class Result:
    """A figure. `value` is the median of `repeats`, which are in the order of measurement."""

    workload: str
    metric: str
    value: float
    unit: str
    engine: str
    threads: int
    machine: str
    commit: str
    date: str
    command: str
    versions: dict[str, str]
    repeats: list[float]


def machine() -> str:
    """A plain description of this computer: processor, cores, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory_line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal"))
    gib = round(int(memory_line.split()[1]) / 2**20)
    return f"{models[0] if models else 'unknown CPU'}, {len(models)} cores, {gib} GiB"


def _git(*arguments: str) -> str | None:
    command = ("git", "--no-optional-locks", *arguments)
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return finished.stdout.strip() if finished.returncode == 0 else None


def commit() -> str:
    """The commit that was measured; `-dirty` if the tree, apart from earlier results, differs from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return "uncommitted"
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{head}-dirty" if changes else head


def summarise(figures: list[dict[str, Any]], command: str) -> list[Result]:
    """One result for each workload, metric and engine, in the order in which they first appear."""
    groups: dict[Key, list[dict[str, Any]]] = {}
    for figure in figures:
        key = (figure["workload"], figure["metric"], figure["engine"])
        groups.setdefault(key, []).append(figure)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    where, what = machine(), commit()
    results = []
    for (workload, metric, engine), group in groups.items():
        repeats = [float(figure["value"]) for figure in group]
        results.append(
            Result(
                workload=workload,
                metric=metric,
                value=statistics.median(repeats),
                unit=group[0]["unit"],
                engine=engine,
                threads=group[0]["threads"],
                machine=where,
                commit=what,
                date=date,
                command=command,
                versions=group[0]["versions"],
                repeats=repeats,
            )
        )
    return results


def default_path() -> Path:
    """The file of today's results."""
    return ROOT / "benchmarks" / "results" / f"{datetime.date.today().isoformat()}-cpu-smollm2.jsonl"


def append(results: list[Result], path: Path) -> None:
    """Add the results to the file; what an earlier run wrote there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.writelines(json.dumps(asdict(result)) + "\n" for result in results)
