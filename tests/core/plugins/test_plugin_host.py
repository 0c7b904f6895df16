"""The facade: decide hooks are checked, observers can't break anything, locks rebuild the same plugins."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo.config.schema import PluginsSection
from octavo.contracts.api import Arrival, RequestSummary
from octavo.errors import NotFoundError, PluginError
from octavo.hookspecs import hookimpl
from octavo.plugins.host import PluginHost
from octavo.plugins.report import LockedPlugin, PluginLock
from octavo.testing.sandbox import write_distribution

NOTHING = PluginsSection(autoload=False)
ARRIVAL = Arrival(model="m", prompt_length=3, headers={})
SUMMARY = RequestSummary("r", None, 1, 0, 1, "stop", None, None, 0.1)


class Selector:
    """Answers ``octavo_select_adapter`` with what it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @hookimpl
    def octavo_select_adapter(self, arrival: Arrival, adapters: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def host_with(*objects: object) -> PluginHost:
    return PluginHost.load(NOTHING, objects)


def test_the_first_answer_that_is_not_none_wins_and_later_plugins_are_asked_first() -> None:
    host = host_with(Selector("sql"), Selector("chat"), Selector(None))
    assert host.select_adapter(ARRIVAL, ["sql", "chat"]) == "chat"


def test_nobody_decides() -> None:
    assert host_with().select_adapter(ARRIVAL, ["sql"]) is None
    assert not host_with().selects_adapters
    assert host_with(Selector(None)).selects_adapters


@pytest.mark.parametrize("answer", ["sqll", 7, ("sql",)])
def test_an_answer_that_is_no_candidate_names_the_plugin(answer: Any) -> None:
    with pytest.raises(PluginError, match=r"'Selector' \(given in Python\) answered octavo_select_adapter"):
        host_with(Selector(answer)).select_adapter(ARRIVAL, ["sql"])


def test_what_a_decide_hook_raises_names_the_plugin() -> None:
    with pytest.raises(PluginError, match=r"'Selector'.*failed in octavo_select_adapter: KeyError"):
        host_with(Selector(KeyError("x"))).select_adapter(ARRIVAL, ["sql"])


def test_a_selector_may_refuse_a_request() -> None:
    with pytest.raises(NotFoundError):
        host_with(Selector(NotFoundError("no such tenant"))).select_adapter(ARRIVAL, ["sql"])


class Observer:
    def __init__(self, fail: bool = False) -> None:
        self.fail = fail
        self.seen: list[str] = []

    @hookimpl
    def octavo_request_finished(self, summary: RequestSummary) -> None:
        self.seen.append(summary.request_id)
        if self.fail:
            raise RuntimeError("observer down")


def test_an_observer_that_fails_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    first, broken, last = Observer(), Observer(fail=True), Observer()
    with caplog.at_level(logging.ERROR, logger="octavo.plugins"):
        host_with(first, broken, last).request_finished(SUMMARY)
    assert [item.seen for item in (first, broken, last)] == [["r"], ["r"], ["r"]]
    assert "'Observer#2'" in caplog.text
    assert "observer down" in caplog.text


def test_observes_requests_only_where_somebody_does() -> None:
    assert not host_with(Selector("x")).observes_requests
    assert host_with(Observer()).observes_requests


class Commands:
    def __init__(self, *names: str) -> None:
        self.names = names

    @hookimpl
    def octavo_commands(self, app: Any) -> None:
        for name in self.names:
            if name == "explode":
                raise RuntimeError("boom")
            app.add(name, "Does a thing.", lambda parser: None, lambda args: 0)


def test_commands_are_collected_by_name() -> None:
    assert list(host_with(Commands("tune", "bench-it")).commands()) == ["tune", "bench-it"]


def test_commands_that_collide_name_the_owners() -> None:
    with pytest.raises(PluginError, match=r"'Commands'.*'tune', which 'Commands#2'.*has already"):
        host_with(Commands("tune"), Commands("tune")).commands()
    with pytest.raises(PluginError, match="'serve', which Octavo itself has already"):
        host_with(Commands("serve")).commands(taken=["serve"])
    with pytest.raises(PluginError, match="lower-case letters"):
        host_with(Commands("Tune Up")).commands()


def test_a_plugin_that_can_not_add_its_commands_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert list(host_with(Commands("tune"), Commands("explode")).commands()) == ["tune"]
    assert "boom" in caplog.text


def test_an_object_given_in_python_can_not_be_locked() -> None:
    with pytest.raises(PluginError, match=r"'Selector' \(given in Python\).*plugins\.load"):
        host_with(Selector("x")).lock()


POLICY = """
from octavo.hookspecs import hookimpl
from octavo.records import PolicyRecord

@hookimpl
def octavo_scheduling_policies():
    yield PolicyRecord(name=NAME, summary="For tests.", build=object)
"""

CHILD = """
import json, sys, msgspec
from octavo.plugins.host import PluginHost
from octavo.plugins.report import PluginLock
host = PluginHost.from_lock(msgspec.json.decode(sys.stdin.buffer.read(), type=PluginLock))
print(json.dumps([[s.kind for s in host.report()], [c.record.name for c in host.scheduling_policies()]]))
"""


def test_a_child_process_boots_the_same_plugins_in_the_same_order(install: Any, tmp_path: Path) -> None:
    install("shortest", sjf="NAME = 'sjf'" + POLICY, other="NAME = 'other'" + POLICY)
    (tmp_path / "mine.py").write_text("NAME = 'mine'" + POLICY)
    section = PluginsSection(autoload=False, enable=["sjf"], load=["shortest_other", str(tmp_path / "mine.py")])
    lock = PluginHost.load(section).lock()
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=msgspec.json.encode(lock),
        capture_output=True,
        env={"PYTHONPATH": str(tmp_path / "site")},
        check=True,
        cwd="/",
    )
    kinds, names = json.loads(done.stdout)
    assert kinds == ["builtin", "entry point", "module", "file"]
    assert names == ["fcfs", "priority", "sjf", "other", "mine"]


def test_a_lock_survives_msgpack(install: Any) -> None:
    install("shortest", sjf="NAME = 'sjf'" + POLICY)
    lock = PluginHost.load(PluginsSection(autoload=False, enable=["sjf"])).lock()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(lock), type=PluginLock) == lock
    assert [(entry.name, entry.kind) for entry in lock.plugins] == [("builtin", "builtin"), ("sjf", "entry point")]


def test_a_lock_of_another_version_is_refused(install: Any) -> None:
    install("shortest", version="1.0", sjf="NAME = 'sjf'" + POLICY)
    entry = LockedPlugin("sjf", "shortest_sjf", "shortest", "0.9", "entry point")
    with pytest.raises(PluginError, match=r"locked at shortest 0\.9, but this process finds 1\.0"):
        PluginHost.from_lock(PluginLock((entry,)))
    gone = LockedPlugin("gone", "gone", "gone-dist", "1.0", "entry point")
    with pytest.raises(PluginError, match="finds none"):
        PluginHost.from_lock(PluginLock((gone,)))


def test_an_entry_point_may_name_an_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        from octavo.hookspecs import hookimpl
        OCTAVO_API = (1, 0)
        class Plugin:
            @hookimpl
            def octavo_engine_stopping(self):
                pass
        class box:
            plugin = Plugin()
    """
    write_distribution(tmp_path, "boxed", {"boxed": "boxed_module:box.plugin"}, {"boxed_module": source})
    monkeypatch.syspath_prepend(str(tmp_path))
    host = PluginHost.load(PluginsSection(autoload=False, enable=["boxed"]))
    assert [status.status for status in host.report() if status.name == "boxed"] == ["loaded"]
    again = PluginHost.from_lock(host.lock())
    assert [status.name for status in again.report()] == ["builtin", "boxed"]
    sys.modules.pop("boxed_module")
