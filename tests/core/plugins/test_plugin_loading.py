"""Discovery and loading: what is loaded, what is refused, and that a broken plugin never hides another."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octavo.config.schema import PluginsSection
from octavo.errors import PluginError
from octavo.hookspecs import hookimpl
from octavo.plugins.host import PluginHost
from octavo.plugins.report import PluginStatus
from octavo.records import PolicyRecord

POLICY = """
    from octavo.hookspecs import hookimpl
    from octavo.records import PolicyRecord

    @hookimpl
    def octavo_scheduling_policies():
        yield PolicyRecord(name="{name}", summary="For tests.", build=object)
"""
BROKEN = "raise RuntimeError('no kernel for this moon')"


def policy(name: str) -> str:
    return POLICY.format(name=name)


def only(*names: str, **rest: Any) -> PluginsSection:
    """Nothing but the built-in plugin and ``names``, whatever is installed where the tests run."""
    return PluginsSection(autoload=False, enable=list(names), **rest)


def status_of(host: PluginHost, name: str) -> PluginStatus:
    return next(status for status in host.report() if status.name == name)


def policies(host: PluginHost) -> list[str]:
    return [item.record.name for item in host.scheduling_policies()]


def test_the_built_in_plugin_comes_through_the_same_door() -> None:
    host = PluginHost.load(only())
    status = status_of(host, "builtin")
    assert (status.status, status.distribution, status.kind) == ("loaded", "octavo", "builtin")
    assert policies(host) == ["fcfs", "priority"]
    assert host.scheduling_policies()[0].plugin == "builtin"


def test_the_built_in_plugin_can_be_disabled_like_any_other() -> None:
    host = PluginHost.load(only(disable=["builtin"]))
    assert policies(host) == []
    assert status_of(host, "builtin").status == "disabled"
    assert "'builtin' (octavo" in host.not_loaded()


def test_an_entry_point_is_loaded_with_its_distribution(install: Any) -> None:
    install("shortest", version="2.5", sjf=policy("sjf"))
    host = PluginHost.load(PluginsSection())
    status = status_of(host, "sjf")
    assert (status.status, status.distribution, status.version) == ("loaded", "shortest", "2.5")
    assert status.hooks == ("octavo_scheduling_policies",)
    assert status.contributions == (("policy", "sjf", "For tests."),)
    contribution = host.scheduling_policies()[-1]
    assert (contribution.record.name, contribution.plugin, contribution.distribution) == ("sjf", "sjf", "shortest")


def test_without_autoload_only_enabled_entry_points_load(install: Any) -> None:
    install("shortest", sjf=policy("sjf"), other=policy("other"))
    host = PluginHost.load(only("sjf"))
    assert policies(host) == ["fcfs", "priority", "sjf"]
    assert status_of(host, "other").status == "disabled"
    assert "autoload" in status_of(host, "other").reason
    assert "shortest_other" not in sys.modules, "a plugin that is not wanted must not be imported"


def test_a_disabled_plugin_is_not_imported(install: Any) -> None:
    install("shortest", sjf=BROKEN)
    host = PluginHost.load(PluginsSection(disable=["sjf"]))
    assert status_of(host, "sjf").status == "disabled"
    assert status_of(host, "sjf").reason == "named in plugins.disable"


@pytest.mark.parametrize(
    "source",
    [BROKEN, "import a_module_that_is_not_there", "def (", "import sys; sys.exit(3)", "OCTAVO_API = (9, 0)"],
)
def test_a_broken_plugin_does_not_hide_the_others(install: Any, source: str) -> None:
    install("alpha", aaa=source)
    install("shortest", sjf=policy("sjf"))
    host = PluginHost.load(PluginsSection())
    assert status_of(host, "aaa").status == "failed"
    assert status_of(host, "aaa").reason
    assert "sjf" in policies(host)


def test_asked_for_and_broken_is_an_error_with_distribution_version_and_cause(install: Any) -> None:
    install("alpha", version="0.3", aaa=BROKEN)
    with pytest.raises(PluginError, match=r"'aaa' \(alpha 0\.3\).*RuntimeError: no kernel for this moon"):
        PluginHost.load(PluginsSection(enable=["aaa"]))


def test_what_a_contribute_hook_raises_is_the_plugins_failure(install: Any) -> None:
    source = """
        from octavo.hookspecs import hookimpl

        @hookimpl
        def octavo_ops():
            raise ValueError("no ops today")
            yield
    """
    install("alpha", aaa=source)
    host = PluginHost.load(PluginsSection())
    assert status_of(host, "aaa").reason == "ValueError: no ops today"
    assert all(item.plugin != "aaa" for item in host.contributions("ops"))
    with pytest.raises(PluginError, match="no ops today"):
        PluginHost.load(only("aaa"))


def test_a_failed_plugin_leaves_nothing_behind(install: Any) -> None:
    source = (
        policy("ghost")
        + """
    @hookimpl
    def octavo_ops():
        raise ValueError("late")

    @hookimpl
    def octavo_engine_stopping():
        raise AssertionError("still registered")
    """
    )
    install("alpha", aaa=source)
    host = PluginHost.load(PluginsSection())
    assert "ghost" not in policies(host)
    host.engine_stopping()


def test_two_entry_points_of_one_name_name_both_distributions(install: Any) -> None:
    install("alpha", version="1.1", sjf=policy("sjf"))
    install("beta", version="2.2", sjf=policy("sjf"))
    with pytest.raises(PluginError, match=r"two plugins are named 'sjf'.*alpha 1\.1 and beta 2\.2"):
        PluginHost.load(PluginsSection())
    assert "sjf" not in policies(PluginHost.load(PluginsSection(disable=["sjf"])))
    assert "sjf" not in policies(PluginHost.load(only()))


def test_an_entry_point_can_not_pose_as_the_built_in_plugin(install: Any) -> None:
    install("alpha", builtin=policy("sjf"))
    with pytest.raises(PluginError, match=r"named 'builtin', from octavo .* and alpha 1\.0"):
        PluginHost.load(PluginsSection())


def test_two_records_of_one_name_name_both_plugins_and_distributions(install: Any) -> None:
    install("alpha", version="1.1", aaa=policy("sjf"))
    install("beta", version="2.2", bbb=policy("sjf"))
    pattern = r"'aaa' \(alpha 1\.1\) and 'bbb' \(beta 2\.2\) both contribute a scheduling policy named 'sjf'"
    with pytest.raises(PluginError, match=pattern):
        PluginHost.load(PluginsSection())
    assert "sjf" in policies(PluginHost.load(PluginsSection(disable=["bbb"])))


@pytest.mark.parametrize("key", ["enable", "disable"])
def test_a_name_that_does_not_exist_is_an_error_with_the_nearest(install: Any, key: str) -> None:
    install("shortest", shortest_first=policy("sjf"))
    with pytest.raises(PluginError, match=rf"plugins\.{key}.*'shortest_frist'.*Did you mean 'shortest_first'\?"):
        PluginHost.load(PluginsSection.model_validate({key: ["shortest_frist"]}))


def test_one_name_in_enable_and_disable_is_an_error(install: Any) -> None:
    install("shortest", sjf=policy("sjf"))
    with pytest.raises(PluginError, match="both enable and disable"):
        PluginHost.load(PluginsSection(enable=["sjf"], disable=["sjf"]))


def test_a_module_and_a_file_can_be_loaded(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("shortest", sjf=policy("sjf"))
    (tmp_path / "mine.py").write_text(policy("mine").replace("\n    ", "\n"))
    monkeypatch.chdir(tmp_path)
    host = PluginHost.load(only(load=["shortest_sjf", "./mine.py"]))
    assert policies(host)[2:] == ["sjf", "mine"]
    assert status_of(host, "shortest_sjf").kind == "module"
    mine = status_of(host, "mine")
    assert (mine.kind, mine.value) == ("file", str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("no.such.module", "ModuleNotFoundError"),
        ("./nothing_here.py", "there is no file"),
        ("json", "implements no hook"),
    ],
)
def test_what_is_loaded_by_name_must_work(item: str, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        PluginHost.load(only(load=[item]))


def test_a_broken_file_does_not_stay_in_sys_modules(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        PluginHost.load(only(load=[str(tmp_path / "bad.py")]))
    assert not [name for name in sys.modules if name.startswith("octavo_file_bad")]


def test_loading_what_is_loaded_already_is_an_error(install: Any) -> None:
    install("shortest", sjf=policy("sjf"))
    with pytest.raises(PluginError, match="loaded already, as 'sjf'"):
        PluginHost.load(only("sjf", load=["shortest_sjf"]))


class Shortest:
    """A plugin that is an object."""

    def __init__(self, name: str = "sjf") -> None:
        self.name = name

    @hookimpl
    def octavo_scheduling_policies(self) -> Any:
        yield PolicyRecord(name=self.name, summary="For tests.", build=object)


def test_objects_and_modules_can_be_given_in_python() -> None:
    module = types.ModuleType("given_module")
    exec(policy("from_module").replace("\n    ", "\n"), module.__dict__)
    host = PluginHost.load(only(), [Shortest("one"), Shortest("two"), module])
    assert policies(host)[2:] == ["one", "two", "from_module"]
    names = [status.name for status in host.report() if status.kind == "object"]
    assert names == ["Shortest", "Shortest#2", "module"]


def test_a_class_and_an_unhashable_object_are_refused() -> None:
    with pytest.raises(PluginError, match="it is a class"):
        PluginHost.load(only(), [Shortest])

    @dataclass
    class Unhashable:
        @hookimpl
        def octavo_engine_stopping(self) -> None: ...

    with pytest.raises(PluginError, match="eq=False"):
        PluginHost.load(only(), [Unhashable()])


def test_damaged_metadata_does_not_hide_other_plugins(install: Any, tmp_path: Path) -> None:
    install("shortest", sjf=policy("sjf"))
    damaged = tmp_path / "site" / "damaged-0.dist-info"
    damaged.mkdir()
    (damaged / "entry_points.txt").write_text("[octavo.plugins]\nodd = not a module!\n")
    host = PluginHost.load(PluginsSection())
    assert "sjf" in policies(host)
    assert status_of(host, "odd").status == "failed"
