"""Errors and messages cross the process boundary unchanged."""

from __future__ import annotations

import msgspec
import pytest

from octavo import errors
from octavo.contracts.api import EngineStats
from octavo.engine.failures import Failure, describe, restore
from octavo.engine.messages import Abort, Beat, FromEngine, Output, Outputs, Rejected, Submit, ToEngine, TokenScore
from octavo.params import SamplingParams


def travel(error):
    data = msgspec.msgpack.encode(describe(error))
    return restore(msgspec.msgpack.decode(data, type=Failure))


@pytest.mark.parametrize(
    "error",
    [
        errors.OctavoError("plain"),
        errors.ConfigError("should be 1, not 2.", "cache.block_size"),
        errors.PluginError("broken"),
        errors.CheckpointError("model.safetensors: truncated"),
        errors.RequestError("wrong", param="prompt", code="bad"),
        errors.NotFoundError("no such model", param="model"),
        errors.OverloadedError("full", retry_after=7),
        errors.EngineDeadError("gone"),
    ],
)
def test_own_errors_keep_class_message_and_attributes(error):
    copy = travel(error)
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy).items() >= vars(error).items()


def test_status_of_an_instance_is_kept():
    error = errors.RequestError("ours")
    error.status = 500
    assert travel(error).status == 500
    assert travel(errors.NotFoundError("no")).status == 404


def test_subclasses_of_plugins_become_the_nearest_class():
    class TooBig(errors.ConfigError):
        pass

    copy = travel(TooBig("too big", "a.b"))
    assert (type(copy), str(copy), copy.path) == (errors.ConfigError, "a.b: too big", "a.b")


def test_foreign_errors_keep_their_name():
    copy = travel(MemoryError("no room"))
    assert (type(copy), str(copy)) == (errors.EngineDeadError, "MemoryError: no room")


PARAMS = SamplingParams(stop="a", logit_bias={1: 2.0}, extra={"p": [1]})
SUBMIT = Submit(3, [1, 2], PARAMS, [2], [2], [[4]], 2**63 - 1, 8, -1, 0.5, None, "salt")


@pytest.mark.parametrize("message", [SUBMIT, Abort([1, 2])])
def test_messages_to_the_engine(message):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToEngine) == message


def test_messages_from_the_engine():
    messages = [
        Outputs([Output(1, [5], [TokenScore(5, -0.5, 1, [5], [-0.5])], None, "stop", 5, None, 16, 1.5)]),
        Beat(EngineStats(running=3)),
        Rejected(4, describe(errors.OverloadedError("full"))),
    ]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(messages), type=list[FromEngine]) == messages


@pytest.mark.parametrize("frame", [["submit", 1], ["submit", 1, "x"], ["nonsense"], {"a": 1}, ["abort", ["x"]]])
def test_malformed_messages_are_refused(frame):
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=ToEngine)
