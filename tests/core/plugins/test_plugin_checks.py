"""What is checked of a plugin: API version, hooks, arguments, records."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.config.schema import PluginsSection
from octavo.errors import PluginError
from octavo.plugins.host import PluginHost

HEAD = """
    from octavo.hookspecs import hookimpl
    from octavo.records import *
    from octavo.records import AttentionRecord, OpRecord, PolicyRecord
"""

FAULTS = {
    "a newer minor API": ("OCTAVO_API = (1, 7)", r"'bad' \(culprit 4\.2\).*hook API 1\.7.*speaks 1\.0"),
    "another major API": ("OCTAVO_API = (2, 0)", r"'bad' \(culprit 4\.2\).*hook API 2\.0.*speaks 1\.0"),
    "a malformed API": ("OCTAVO_API = '1.0'", r"'bad'.*OCTAVO_API must be a pair such as \(1, 0\), not '1\.0'"),
    "an unknown hook": (
        "@hookimpl\n    def octavo_scheduling_policy(): yield",
        r"no hook 'octavo_scheduling_policy'\. Did you mean 'octavo_scheduling_policies'\?",
    ),
    "a wrong argument": (
        "@hookimpl\n    def octavo_select_attention(context, candidates): return None",
        r"octavo_select_attention has no argument 'context'\..*It has ctx, candidates",
    ),
    "an argument with a default": (
        "@hookimpl\n    def octavo_select_attention(ctx=None): return None",
        "'ctx' must have no default",
    ),
    "star arguments": ("@hookimpl\n    def octavo_ops(*args): return ()", "plain arguments only"),
    "an unmarked hook": ("def octavo_ops(): return ()", "octavo_ops is not marked with `@octavo.hookimpl`"),
    "a wrapper": ("@hookimpl(wrapper=True)\n    def octavo_ops(): return (yield)", "is a wrapper"),
    "no hook": ("", "implements no hook"),
    "a record of another slot": (
        "@hookimpl\n    def octavo_ops(): yield PolicyRecord(name='x', summary='', build=object)",
        "octavo_ops must yield OpRecords, not PolicyRecord",
    ),
    "a record that is not in a list": (
        "@hookimpl\n    def octavo_ops(): return OpRecord(op='silu', name='x', summary='', build=object)",
        "octavo_ops must yield OpRecords, not return OpRecord",
    ),
    "no record at all": ("@hookimpl\n    def octavo_ops(): return 'silu'", "octavo_ops must yield OpRecords"),
    "one name twice": (
        "@hookimpl\n    def octavo_scheduling_policies():\n"
        "        for _ in range(2): yield PolicyRecord(name='x', summary='', build=object)",
        "two records named 'x'",
    ),
    "a reserved name": (
        "@hookimpl\n    def octavo_scheduling_policies():\n"
        "        yield PolicyRecord(name='auto', summary='', build=object)",
        "is not auto",
    ),
    "a malformed name": (
        "@hookimpl\n    def octavo_scheduling_policies(): yield PolicyRecord(name='a b', summary='', build=object)",
        "named 'a b'",
    ),
    "wrong options": (
        "@hookimpl\n    def octavo_scheduling_policies():\n"
        "        yield PolicyRecord(name='x', summary='', build=object, options=dict)",
        "options of scheduling policy 'x' must be a subclass of octavo.config.schema.Section",
    ),
    "supports that is no function": (
        "@hookimpl\n    def octavo_scheduling_policies():\n"
        "        yield PolicyRecord(name='x', summary='', build=object, supports=None)",
        "supports of scheduling policy 'x' must be a function",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_plugin_and_distribution(install: Any, fault: str) -> None:
    source, pattern = FAULTS[fault]
    install("culprit", version="4.2", bad=HEAD + "\n    " + source + "\n")
    with pytest.raises(PluginError, match=pattern) as caught:
        PluginHost.load(PluginsSection(autoload=False, enable=["bad"]))
    assert "'bad' (culprit 4.2)" in str(caught.value)
    host = PluginHost.load(PluginsSection())
    failed = next(status for status in host.report() if status.name == "bad")
    assert failed.status == "failed"
    assert failed.reason in str(caught.value)


def test_the_same_op_name_may_implement_several_operations(install: Any) -> None:
    source = (
        HEAD
        + """
    OCTAVO_API = (1, 0)

    @hookimpl
    def octavo_ops():
        for op in ("silu_mul", "rms_norm"):
            yield OpRecord(op=op, name="fast", summary="", build=object)
    """
    )
    install("fine", good=source)
    host = PluginHost.load(PluginsSection(autoload=False, enable=["good"]))
    assert [item.record.op for item in host.ops()] == ["silu_mul", "rms_norm"]


def test_an_optional_hook_of_a_later_octavo_is_let_through(install: Any) -> None:
    source = (
        HEAD
        + """
    @hookimpl(optionalhook=True)
    def octavo_hook_of_tomorrow(anything):
        return None

    @hookimpl
    def octavo_engine_stopping():
        return None
    """
    )
    install("fine", good=source)
    host = PluginHost.load(PluginsSection(autoload=False, enable=["good"]))
    assert [status.status for status in host.report() if status.name == "good"] == ["loaded"]


def test_a_hook_may_contribute_nothing(install: Any) -> None:
    install("fine", good=HEAD + "\n    @hookimpl\n    def octavo_ops(): return None\n")
    host = PluginHost.load(PluginsSection(autoload=False, enable=["good"]))
    assert host.ops() == ()
