"""The parent's side of an engine process: start it, talk to it, notice its death, end it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

import msgspec

from octavo.engine.boot import Boot
from octavo.engine.messages import FromEngine, Stop, ToEngine
from octavo.engine.process import LENGTH_BYTES
from octavo.engine.transport import ClientSockets
from octavo.errors import EngineDeadError
from octavo.plugins.report import PluginLock

_COMMAND: Final = (sys.executable, "-P", "-m", "octavo.engine.process")
_STOP_SECONDS: Final = 5.0
_TERMINATE_SECONDS: Final = 2.0
_LAST_WORDS_SECONDS: Final = 0.1
_LONGEST_FOLDER: Final = 80  # a Unix socket's path has about 100 bytes


class ProcessLink:
    """A :class:`octavo.engine.links.Link` to an engine in a process of its own.

    The process is a fresh interpreter, not a fork, and never imports the caller's main module. Sockets lie in a
    folder that only this user can enter.
    """

    def __init__(self, lock: PluginLock, launch: dict[str, Any]) -> None:
        self._lock = lock
        self._launch = launch
        self._folder: Path | None = None
        self._sockets: ClientSockets | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()  # start and close may come from two threads, in either order
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The engine's process id, once started."""
        return self._process.pid if self._process is not None else None

    @property
    def folder(self) -> Path | None:
        """Where the sockets lie, once started."""
        return self._folder

    def start(self) -> None:
        """Start the process and hand it its boot message."""
        with self._guard:
            if self._closed:
                raise EngineDeadError("the engine was stopped before it started.")
            self._folder = _private_folder()
            self._sockets = ClientSockets(self._folder)
            self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, env=_environment())
            level = logging.getLogger("octavo").getEffectiveLevel()
            _write(self._process, msgspec.msgpack.encode(Boot(self._lock, self._launch, str(self._folder), level)))

    def send(self, message: ToEngine) -> None:
        """Queue a message; never waits."""
        assert self._sockets is not None
        self._sockets.send(message)

    def receive(self, timeout: float) -> list[FromEngine]:
        """See :class:`octavo.engine.links.Link`."""
        assert self._sockets is not None
        assert self._process is not None
        messages = self._sockets.receive(timeout)
        if messages:
            return messages
        status = self._process.poll()
        if status is None:
            return []
        messages = self._sockets.receive(_LAST_WORDS_SECONDS)
        if messages:
            return messages
        raise EngineDeadError(_cause(status))

    def close(self, patient: bool) -> None:
        """Ask the process to end, then make it."""
        with self._guard:
            self._closed = True
            if self._process is not None:
                self._end(self._process, patient)
            if self._sockets is not None:
                self._sockets.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, process: subprocess.Popen[bytes], patient: bool) -> None:
        if process.poll() is None and self._sockets is not None:
            self._sockets.send(Stop())
        steps = ((_STOP_SECONDS if patient else 0.0, process.terminate), (_TERMINATE_SECONDS, process.kill))
        for seconds, harder in steps:
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                harder()
        process.wait()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died already: ``receive`` will say so
        process.stdin.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
        process.stdin.flush()


def _private_folder() -> Path:
    """A new folder with mode 0700, with a path that is short enough for a socket."""
    folder = tempfile.mkdtemp(prefix="octavo-")
    if len(folder.encode()) > _LONGEST_FOLDER:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="octavo-", dir="/tmp")
    return Path(folder)


def _environment() -> dict[str, str]:
    """The child finds the same modules as this process, whatever was done to ``sys.path`` here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}


def _cause(status: int) -> str:
    if status >= 0:
        return f"the engine process has ended with exit status {status}; its own log says why."
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
    return f"the engine process was ended by {name}{hint}."
