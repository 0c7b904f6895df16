"""Two ends of the sockets, in one process."""

from __future__ import annotations

import time

import msgspec
import pytest
import zmq

from octavo.contracts.api import EngineStats
from octavo.engine.failures import describe, restore
from octavo.engine.messages import Abort, Beat, Output, Outputs, Rejected, Submit
from octavo.engine.transport import ClientSockets, EngineSockets
from octavo.errors import RequestError
from octavo.params import SamplingParams


@pytest.fixture
def ends(tmp_path):
    client, engine = ClientSockets(tmp_path), EngineSockets(tmp_path)
    yield client, engine
    client.close()
    engine.close()


def submit(first_id=1, **params):
    return Submit(first_id, [1], SamplingParams(**params), [], [], [], 0, 4, 0, 0.0, None, None)


def receive(end, count):
    messages, end_of_patience = [], time.monotonic() + 10
    while len(messages) < count:
        assert time.monotonic() < end_of_patience, "nothing came"
        messages += end.receive(0.1)
    return messages


def test_messages_arrive_in_order(ends):
    client, engine = ends
    sent = [submit(1, temperature=0.5, stop=["x"]), Abort([1]), submit(2, logit_bias={3: -1.0})]
    for message in sent:
        client.send(message)
    assert receive(engine, 3) == sent
    answers = [Outputs([Output(1, [5, 6])]), Beat(EngineStats(steps=3))]
    engine.send(answers)
    assert receive(client, 2) == answers
    assert client.receive(0.0) == []


def test_what_cannot_be_sent_is_refused(ends):
    client, engine = ends
    for value in (object(), 2**70, "\ud800"):
        with pytest.raises(RequestError, match="can't be sent"):
            client.send(submit(extra={"processor": value}))
    client.send(submit(2))
    assert [message.id for message in receive(engine, 1)] == [2]


def frame(message, **changes):
    """A submit whose parameters were changed on the way, as no client of ours would."""
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    fields[3] = {**fields[3], **changes}
    return msgspec.msgpack.encode(fields)


def test_messages_that_cannot_be_read_are_answered_and_skipped(ends, tmp_path):
    client, engine = ends
    stranger = zmq.Context.instance().socket(zmq.PUSH)
    stranger.connect(f"ipc://{tmp_path}/to-engine")
    wrong = [
        b"",
        b"\xc1",
        b"\x80",
        msgspec.msgpack.encode(["nonsense", 1]),
        msgspec.msgpack.encode(["submit", "x"]),
    ]
    for data in (*wrong, frame(submit(7), temperature=-1), frame(submit(8), temperature="hot")):
        stranger.send(data)
    stranger.send(msgspec.msgpack.encode(submit(9)))
    assert [message.id for message in receive(engine, 1)] == [9]
    errors = {message.id: restore(message.failure) for message in receive(client, 2)}
    assert all(type(message) is RequestError for message in errors.values())
    assert errors[7].param == "temperature"
    assert "not a valid request" in str(errors[8])
    stranger.close(0)


def test_last_words_are_delivered(tmp_path):
    client, engine = ClientSockets(tmp_path), EngineSockets(tmp_path)
    engine.send([Rejected(1, describe(RequestError("no")))])
    engine.close()
    assert [message.id for message in receive(client, 1)] == [1]
    client.close()
