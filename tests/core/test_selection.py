"""Choosing a record: the order of the rules, the reasons, the errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from octavo.config.schema import NoOptions, Section
from octavo.errors import ConfigError, PluginError
from octavo.plugins.report import Contribution, Decision
from octavo.plugins.slots import BY_KEY
from octavo.records import AttentionRecord, Context, DeviceProfile, ModelProfile
from octavo.selection import choose

SLOT = BY_KEY["attention"]


def context() -> Context:
    model = ModelProfile(
        path="m",
        name="m",
        format="config",
        architecture="LlamaForCausalLM",
        config={},
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        vocab_size=8,
        max_length=64,
        dtype="float32",
        tied_embeddings=True,
        eos_ids=(),
        quantization=None,
        generation={},
        digest="d",
    )
    device = DeviceProfile(type="cpu", index=0, name="cpu", capability=None, total_memory=1, free_memory=1, cores=1)
    return Context(
        model=model,
        device=device,
        dtype="float32",
        kv_dtype="float32",
        block_size=16,
        max_length=64,
        max_sequences=4,
        max_batch_tokens=64,
    )


class Needy(Section):
    path: str
    size: int = 1


def record(
    name: str,
    rank: int = 0,
    why_not: str | None = None,
    automatic: bool = True,
    options: type[Section] = NoOptions,
    supports: Callable[[Context], Any] | None = None,
) -> Contribution[AttentionRecord]:
    item = AttentionRecord(
        name=name,
        summary="",
        build=lambda *_: name,
        rank=rank,
        automatic=automatic,
        options=options,
        supports=supports or (lambda _: why_not),
    )
    return Contribution(item, f"{name}-plugin", f"{name}-dist", "1.0", f"'{name}-plugin' ({name}-dist 1.0)")


ALL = [
    record("torch"),
    record("triton", rank=10, why_not="needs a CUDA device"),
    record("paged", rank=5),
    record("even", rank=5),
    record("named", rank=99, automatic=False),
]


def name_of(**rest: Any) -> str:
    return choose(SLOT, ALL, context(), **rest).name


def test_the_highest_rank_that_works_wins_and_the_first_of_equals() -> None:
    choice = choose(SLOT, ALL, context())
    assert (choice.name, choice.plugin, choice.distribution) == ("paged", "paged-plugin", "paged-dist")
    assert choice.reason == "the highest rank of those that work here"
    assert choice.options == NoOptions()


def test_every_candidate_has_its_reason() -> None:
    found = {item.name: (item.supported, item.reason) for item in choose(SLOT, ALL, context()).candidates}
    assert found == {
        "torch": (True, ""),
        "triton": (False, "needs a CUDA device"),
        "paged": (True, ""),
        "even": (True, ""),
        "named": (True, "works here, but only where it is named"),
    }


def test_prefer_goes_before_deciding_and_deciding_before_rank() -> None:
    def decide(names: Any) -> Decision:
        assert names == ["paged", "even", "torch"], "supported and automatic ones, best first"
        return Decision("torch", "decider")

    assert name_of(decide=decide) == "torch"
    assert choose(SLOT, ALL, context(), decide=decide).reason == "decided by plugin 'decider'"
    assert name_of(decide=lambda _: None) == "paged"
    assert name_of(prefer=["triton", "even"], decide=decide) == "even"
    assert name_of(prefer=["triton"], decide=decide) == "torch"
    assert name_of(prefer=["named"]) == "named", "a preference names it"


def test_explicit_use_wins_over_everything() -> None:
    assert name_of(use="torch", prefer=["even"], decide=lambda _: Decision("paged", "x")) == "torch"
    assert name_of(use="named") == "named"


def test_explicit_use_that_does_not_work_says_why_and_what_would() -> None:
    pattern = (
        r"attention backend 'triton' \(named in attention\.use; plugin 'triton-plugin' \(triton-dist 1\.0\)\) "
        r"can't be used here: needs a CUDA device\. These would work: torch, paged, even, named\."
    )
    with pytest.raises(PluginError, match=pattern):
        name_of(use="triton")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no attention backend named 'pagd'\. Did you mean 'paged'\?"):
        name_of(use="pagd")


def test_an_empty_slot_is_named_with_the_plugins_that_are_not_loaded() -> None:
    with pytest.raises(PluginError, match=r"the attention slot is empty.*an attention backend\. Not loaded: x"):
        choose(SLOT, [], context(), hint=" Not loaded: x.")
    with pytest.raises(PluginError, match=r"'torch': the slot is empty.* Not loaded: x"):
        choose(SLOT, [], context(), "torch", hint=" Not loaded: x.")


def test_nothing_that_works_lists_every_reason() -> None:
    records = [record("a", why_not="is too old"), record("b", automatic=False)]
    with pytest.raises(PluginError, match=r"a: is too old; b: works here, but only where it is named"):
        choose(SLOT, records, context())


def test_a_record_given_in_python_is_used_and_checked() -> None:
    choice = choose(SLOT, ALL, context(), record("mine").record)
    assert (choice.name, choice.plugin, choice.reason) == ("mine", "", "given in Python")
    assert choice.candidates[-1].name == "mine"
    with pytest.raises(PluginError, match=r"'mine' \(given in Python.*is broken"):
        choose(SLOT, ALL, context(), record("mine", why_not="is broken").record)


def test_required_options_must_be_given() -> None:
    records = [record("torch"), record("disk", rank=3, options=Needy)]
    choice = choose(SLOT, records, context())
    assert choice.name == "torch"
    assert choice.candidates[1].reason == "needs options (path), so it must be named"
    with pytest.raises(PluginError, match=r"'disk' needs options \(path\)"):
        choose(SLOT, records, context(), "disk")
    given = choose(SLOT, records, context(), "disk", options=Needy(path="/x"))
    assert given.options == Needy(path="/x")


def fail(_: Context) -> str:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("supports", "words"), [(fail, "ZeroDivisionError: by zero"), (lambda _: False, "answered False")]
)
def test_supports_that_is_broken_is_a_reason_unless_named(supports: Any, words: str) -> None:
    records = [record("torch"), record("odd", rank=9, supports=supports)]
    choice = choose(SLOT, records, context())
    assert choice.name == "torch"
    assert words in choice.candidates[1].reason
    with pytest.raises(PluginError, match=words):
        choose(SLOT, records, context(), "odd")


def test_building_blames_the_plugin_but_lets_octavos_errors_through() -> None:
    def build(kind: type[Exception]) -> None:
        raise kind("no room")

    item = AttentionRecord(name="x", summary="", build=build)
    choice = choose(SLOT, [Contribution(item, "p", "d", "1", "'p' (d 1)")], context())
    with pytest.raises(PluginError, match=r"plugin 'p' \(d 1\) can't build 'x': MemoryError: no room"):
        choice.build(MemoryError)
    with pytest.raises(ConfigError, match=r"^no room$"):
        choice.build(ConfigError)
