"""Compare Octavo with vLLM's CPU build and Transformers on SmolLM2-135M, on the same requests.

Make the checkpoint for the peers once with export_smollm2.py, then

    python benchmarks/cpu/compare.py --model HF_FOLDER --vllm-python VLLM_PYTHON --repeats 3

Engines run one after another in processes of their own, all of them once, then all of them again, so that a
machine that slows down slows all alike. Figures are medians. Keep the machine free of other work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import table
import workloads

HERE = Path(__file__).resolve().parent
SCHEMES = {"octavo-int8": "int8", "octavo-int4": "int4"}
ENGINES = ("octavo", *SCHEMES, "vllm", "transformers")
NOT_OFFERED = {"transformers": {"prefix_on"}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="%(choices)s")
    parser.add_argument("--workloads", nargs="+", choices=workloads.NAMES, default=list(workloads.NAMES))
    parser.add_argument("--repeats", type=int, default=3, help="processes for each engine")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink the request counts, for trials")
    parser.add_argument("--model", help="Hugging Face folder of the model, for vLLM and Transformers")
    parser.add_argument("--octavo-python", default=sys.executable, help="Python that has Octavo")
    parser.add_argument("--vllm-python", default=sys.executable, help="Python that has vLLM's CPU build")
    parser.add_argument("--transformers-python", default=sys.executable, help="Python that has Transformers")
    parser.add_argument(
        "--output", type=Path, help="file to append to; default: today's in benchmarks/results, none for trials"
    )
    return parser


def _recorded_command(options: argparse.Namespace) -> str:
    """The command without this machine's paths."""
    parts = ["python benchmarks/cpu/compare.py", "--engines", *options.engines]
    parts += ["--workloads", *options.workloads]
    parts += ["--repeats", str(options.repeats), "--scale", f"{options.scale:g}"]
    if any(not engine.startswith("octavo") for engine in options.engines):
        parts += ["--model", "HF_FOLDER"]
    for kind in ("octavo", "vllm", "transformers"):
        if any(engine.startswith(kind) for engine in options.engines):
            parts += [f"--{kind}-python", f"{kind.upper()}_PYTHON"]
    return " ".join(parts)


def _command(engine: str, options: argparse.Namespace) -> list[str]:
    kind = engine.partition("-")[0]
    names = [name for name in options.workloads if name not in NOT_OFFERED.get(engine, ())]
    if not names:
        return []
    python = getattr(options, f"{kind}_python")
    command = [python, str(HERE / f"run_{kind}.py"), *names, "--scale", str(options.scale)]
    if kind != "octavo":
        return [*command, "--model", options.model]
    return [*command, "--quantization", SCHEMES[engine]] if engine in SCHEMES else command


def _run(command: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """The figures that a runner printed, shown as they come, and whether it got to its end."""
    figures = []
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            for line in process.stdout or ():
                figure = json.loads(line)
                figures.append(figure)
                print("{engine} {workload} {metric} {value:.2f}".format(**figure), file=sys.stderr)
        if process.returncode != 0:
            log.seek(0)
            print(log.read()[-4000:], file=sys.stderr)
            print(f"exit code {process.returncode}; the log's end is above", file=sys.stderr)
    return figures, process.returncode == 0


def _collect(options: argparse.Namespace) -> tuple[list[dict[str, Any]], set[str]]:
    """All figures, and the engines that failed (which are not tried again)."""
    figures: list[dict[str, Any]] = []
    failed: set[str] = set()
    for repeat in range(options.repeats):
        for engine in options.engines:
            command = _command(engine, options)
            if engine in failed or not command:
                continue
            start = time.perf_counter()
            printed, complete = _run(command)
            figures += printed
            if not complete:
                failed.add(engine)
            took = time.perf_counter() - start
            print(f"{engine}, {repeat + 1} of {options.repeats}: {took:.0f} s", file=sys.stderr)
    return figures, failed


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    if options.model is None and any(not engine.startswith("octavo") for engine in options.engines):
        parser.error("vllm and transformers need --model; export_smollm2.py makes it")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the machine is busy (load {load:.1f}); figures will be too low", file=sys.stderr)
    figures, failed = _collect(options)
    summary = results.summarise(figures, _recorded_command(options))
    if summary:
        print(table.render(summary))
    output = options.output or (results.default_path() if options.scale == 1.0 else None)
    if output is not None and summary:
        results.append(summary, output)
        print(f"{len(summary)} figures added to {output.name}")
    if failed:
        sys.exit(f"failed: {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
