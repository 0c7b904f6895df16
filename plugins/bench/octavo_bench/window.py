"""A look at some steps in the middle of a run: a torch.profiler trace over a window of time.

The engine's loop belongs to ``generate``, which returns when all is done. A signal interrupts the thread that runs
it, once to start the profiler and once to stop it, so that the trace holds a running engine's steps and no others.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from types import FrameType

    from torch.profiler import profile

_SIGNAL: Final = signal.SIGUSR1


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

    def switch(number: int, frame: FrameType | None) -> None:
        if not running:
            running.append(True)
            trace.start()
        elif len(running) == 1:
            running.append(False)
            trace.stop()

    main = threading.get_ident()
    timers = [threading.Timer(delay, signal.pthread_kill, (main, _SIGNAL)) for delay in (after, after + length)]
    before = signal.signal(_SIGNAL, switch)
    try:
        for timer in timers:
            timer.start()
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


def _profiler() -> profile:
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
