"""The engine process: ``python -m octavo.engine.process``, started by :mod:`octavo.engine.process_link`.

Its standard input brings the boot message and then stays open: when it ends, the parent has, and so does this
process. Nothing else comes in but messages over the sockets.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import shutil
import signal
import threading
from pathlib import Path
from typing import Final

import msgspec

from octavo.engine.boot import Boot
from octavo.engine.core import serve
from octavo.engine.failures import describe, log_unexpected
from octavo.engine.messages import Fatal
from octavo.engine.transport import EngineSockets

LENGTH_BYTES: Final = 8
_LOOK_SECONDS: Final = 1.0


def main() -> int:
    """Run one engine to its end; the exit status."""
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    parent = os.getppid()
    boot = msgspec.msgpack.decode(_read_boot(0), type=Boot)
    _follow(_detach_input(), parent, boot.folder)
    logging.basicConfig(format="%(asctime)s %(levelname)s engine %(name)s: %(message)s")
    logging.getLogger("octavo").setLevel(boot.log_level)
    sockets = EngineSockets(Path(boot.folder))
    try:
        return _run(boot, sockets)
    finally:
        sockets.close()


def _run(boot: Boot, sockets: EngineSockets) -> int:
    try:
        core = boot.build()
    except Exception as error:
        log_unexpected(error)
        sockets.send([Fatal(describe(error))])
        return 1
    sockets.send([core.ready])
    serve(core, sockets)
    return 0 if core.failure is None else 1


def _read_boot(source: int) -> bytes:
    length = int.from_bytes(_read(source, LENGTH_BYTES), "little")
    return _read(source, length)


def _read(source: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = os.read(source, length - len(data))
        if not piece:
            raise SystemExit("octavo.engine.process is started by Octavo itself, not by hand.")
        data += piece
    return data


def _detach_input() -> int:
    """Move standard input away, so that nobody reads from it by mistake."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return lifeline


def _follow(lifeline: int, parent: int, folder: str) -> None:
    """End at once when the parent is gone. Its pid is looked at too: a fork of it may hold the pipe open."""

    def watch() -> None:
        while True:
            readable, _, _ = select.select([lifeline], [], [], _LOOK_SECONDS)
            if (readable and not os.read(lifeline, 1)) or os.getppid() != parent:
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(1)

    threading.Thread(target=watch, name="octavo-parent", daemon=True).start()


if __name__ == "__main__":
    raise SystemExit(main())
