"""A look at some steps in the middle of a run: a torch.profiler trace over a window of time.

The engine's loop belongs to ``generate``, which returns when all is done. A signal interrupts the thread that runs
it, once to start the profiler and once to stop it, so that the trace holds a running engine's steps and no others.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from octavo.errors import ConfigError, OctavoError
from octavo_bench.engine import Engine, timed
from octavo_bench.options import seconds, share
from octavo_bench.sizes import Job

if TYPE_CHECKING:
    from types import FrameType

    from torch.profiler import profile as Profiler

_SIGNAL: Final = signal.SIGUSR1


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Add whether, when and how long to look."""
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="after the measurements write a trace of some steps of one more run (for ui.perfetto.dev)",
    )
    parser.add_argument(
        "--profile-at",
        type=share,
        default=0.5,
        metavar="SHARE",
        help="when the trace begins: 0 with the run, 0.5 (the default) in the middle",
    )
    parser.add_argument(
        "--profile-seconds", type=seconds, default=0.25, metavar="S", help="length of the trace (default: 0.25)"
    )


def profile(
    args: argparse.Namespace,
    engine: Engine,
    jobs: Sequence[Job],
    temperature: float,
    lasts: float,
    adapters: Sequence[str] = (),
) -> None:
    """One more run, which ``lasts`` so many seconds, with the trace that the arguments ask for."""
    around = profiled(args.profile, args.profile_at * lasts, args.profile_seconds)
    timed(engine, jobs, temperature, around, adapters)
    print(f"a trace of {args.profile_seconds:g} s is written; open it at ui.perfetto.dev")


@contextlib.contextmanager
def profiled(path: str, after: float, length: float) -> Iterator[None]:
    """Trace what this thread, the main one, and its GPU do from ``after`` seconds on for ``length`` seconds, and
    write it as Chrome JSON (compressed where ``path`` ends in .gz).

    Raises :class:`OctavoError` when what ran was over before the window began.
    """
    target = Path(path).expanduser()
    if not target.parent.is_dir():
        raise ConfigError(f"--profile {path}: there is no folder {str(target.parent)!r}.")
    if threading.current_thread() is not threading.main_thread():
        raise OctavoError("a profile is taken in the main thread only.")
    _warm_up()
    trace = _profiler()
    running: list[bool] = []  # then started, then stopped
    timers: list[threading.Timer] = []

    def switch_in(delay: float) -> None:
        timers.append(threading.Timer(delay, signal.pthread_kill, (main, _SIGNAL)))
        timers[-1].start()

    def switch(number: int, frame: FrameType | None) -> None:
        if not running:
            running.append(True)
            trace.start()
            switch_in(length)  # not before: two signals that wait are delivered as one
        elif len(running) == 1:
            running.append(False)
            trace.stop()

    main = threading.get_ident()
    before = signal.signal(_SIGNAL, switch)
    try:
        switch_in(after)
        yield
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
        if len(running) == 1:
            switch(_SIGNAL, None)
        signal.signal(_SIGNAL, before)
    if not running:
        raise OctavoError("the run was over before the profile's window: use more requests or longer answers.")
    trace.export_chrome_trace(str(target))


def _profiler() -> Profiler:
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities)


def _warm_up() -> None:
    """The first start takes seconds on a GPU, which would be the whole window."""
    with _profiler():
        pass
