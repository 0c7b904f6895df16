"""msgpack over ZeroMQ over Unix sockets: one frame a message to the engine, one frame a step back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from octavo.engine.failures import describe
from octavo.engine.messages import FromEngine, Rejected, Submit, ToEngine
from octavo.errors import RequestError

_INBOX: Final = "to-engine"
_OUTBOX: Final = "from-engine"
_LAST_WORDS_MS: Final = 2000  # for what a closing engine still has to say
_log = logging.getLogger("octavo.engine")

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(list[FromEngine])


class EngineSockets:
    """The engine's side, a :class:`octavo.engine.core.Channel`. ``folder`` holds the sockets."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context(io_threads=1)
        self._inbox = _socket(self._context, zmq.PULL)
        self._inbox.bind(_address(folder, _INBOX))
        self._outbox = _socket(self._context, zmq.PUSH, linger=_LAST_WORDS_MS)
        self._outbox.connect(_address(folder, _OUTBOX))

    def receive(self, timeout: float) -> list[ToEngine]:
        """Messages that have come. One that can't be read is answered here and not passed on."""
        messages: list[ToEngine] = []
        for frame in _frames(self._inbox, timeout):
            try:
                messages.append(_to_engine.decode(frame))
            except Exception as error:
                self._refuse(frame, error)
        return messages

    def send(self, messages: list[FromEngine]) -> None:
        """Send what one step brought."""
        self._outbox.send(_encoder.encode(messages))

    def close(self) -> None:
        """Deliver what is under way, then close."""
        self._inbox.close(0)
        self._outbox.close()
        self._context.term()

    def _refuse(self, frame: bytes, error: Exception) -> None:
        _log.error("a message to the engine could not be read: %s", error)
        try:
            tag, first_id = msgspec.msgpack.decode(frame)[:2]
        except (msgspec.DecodeError, TypeError, ValueError):
            return
        if tag == Submit.__struct_config__.tag and isinstance(first_id, int):
            refusal = error if isinstance(error, RequestError) else RequestError(f"not a valid request: {error}")
            self.send([Rejected(first_id, describe(refusal))])


class ClientSockets:
    """The API process's side. ``send`` and ``receive`` may be called from two different threads."""

    def __init__(self, folder: Path) -> None:
        # Shared by all engines of this process and never ended: ending one waits for whoever forgot to close.
        context: zmq.Context[Any] = zmq.Context.instance()
        self._from_engine = _socket(context, zmq.PULL)
        self._from_engine.bind(_address(folder, _OUTBOX))
        self._to_engine = _socket(context, zmq.PUSH)
        # The connecting side queues at once, so that sending never waits for the engine.
        self._to_engine.connect(_address(folder, _INBOX))

    def send(self, message: ToEngine) -> None:
        """Raises :class:`RequestError` when the message holds something that msgpack has no form for."""
        try:
            frame = _encoder.encode(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(f"the request can't be sent to the engine: {error}.") from error
        self._to_engine.send(frame)

    def receive(self, timeout: float) -> list[FromEngine]:
        """What has come; waits up to ``timeout`` seconds for the first message."""
        return [message for frame in _frames(self._from_engine, timeout) for message in _from_engine.decode(frame)]

    def close(self) -> None:
        """Close; what was not sent yet is dropped. No other thread may be inside ``receive``."""
        self._from_engine.close(0)
        self._to_engine.close(0)


def _socket(context: zmq.Context[Any], kind: int, linger: int = 0) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    # Both queues are bounded by the number of requests that admission lets in, not by dropping or blocking here.
    socket.set_hwm(0)
    socket.linger = linger
    return socket


def _address(folder: Path, name: str) -> str:
    return f"ipc://{folder / name}"


def _frames(socket: zmq.Socket[bytes], timeout: float) -> list[bytes]:
    if not socket.poll(round(timeout * 1000)):
        return []
    frames = []
    while True:
        try:
            frames.append(socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return frames
