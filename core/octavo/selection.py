"""Choosing one record for a slot, with the reason, and why each other was not chosen. Pure: no I/O, no torch.

In order: what the configuration names (which must work here, or it is an error), the first of its ``prefer``
list that works, what a decide hook answers, the highest rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from octavo.config.schema import Section
from octavo.errors import OctavoError, PluginError, nearest
from octavo.plugins.report import Contribution, Decision
from octavo.plugins.slots import Slot
from octavo.records import Context, Record

R = TypeVar("R", bound=Record)
Judge = Callable[[Any, Context], "str | None"]
Decide = Callable[[Sequence[str]], "Decision | None"]

_log = logging.getLogger("octavo.selection")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One record that was looked at. ``reason`` says why it can't be used, or why it is not used by itself."""

    name: str
    plugin: str
    supported: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice(Generic[R]):
    """What a slot got, and why. ``label`` names the plugin in messages."""

    record: R
    plugin: str
    distribution: str
    options: Section
    reason: str
    candidates: tuple[Candidate, ...]
    label: str = ""

    @property
    def name(self) -> str:
        """The record's name."""
        return self.record.name

    def build(self, *arguments: Any) -> Any:
        """``record.build(*arguments)``, blaming the plugin for what fails: see :func:`build_record`."""
        return build_record(self.record, self.label, *arguments)


@dataclass(frozen=True, slots=True)
class Absent:
    """A slot that stays empty on purpose, and why: no scheme for an unquantised model, torch's own operation."""

    name: str
    reason: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class _Judged(Generic[R]):
    contribution: Contribution[R]
    options: Section | None
    candidate: Candidate

    @property
    def name(self) -> str:
        return self.contribution.record.name

    @property
    def usable(self) -> bool:
        return self.candidate.supported and self.options is not None


def choose(
    slot: Slot,
    contributions: Sequence[Contribution[R]],
    ctx: Context,
    use: str | R = "auto",
    prefer: Sequence[str] = (),
    decide: Decide | None = None,
    *,
    options: Section | None = None,
    judge: Judge | None = None,
    path: str = "",
    hint: str = "",
) -> Choice[R]:
    """The record for ``slot``.

    ``options`` go with an explicit ``use``; otherwise the record's defaults are taken. ``judge`` replaces
    ``record.supports``. ``path`` and ``hint`` are for messages: where ``use`` stands, and which plugins are
    not loaded. Raises :class:`PluginError` when nothing fits, or ``use`` does not.
    """
    path = path or f"{slot.key}.use"
    if isinstance(use, Record):
        contributions = [*contributions, Contribution(use, "", "", "", f"{use.name!r} (given in Python)")]
        judged = [_judge(item, ctx, judge) for item in contributions]
        return _named(slot, judged, judged[-1], options, "given in Python", hint)
    judged = [_judge(item, ctx, judge) for item in contributions]
    if use != "auto":
        found = next((item for item in judged if item.name == use), None)
        if found is None:
            raise PluginError(_missing(slot, judged, use, path, hint))
        return _named(slot, judged, found, options, f"named in {path}", hint)
    if not judged:
        raise PluginError(f"the {slot.key} slot is empty: no loaded plugin contributes {slot.a_noun}.{hint}")
    picked, reason = _pick(judged, prefer, decide, path)
    if picked is None:
        raise PluginError(f"no {slot.noun} works here. {_reasons(judged)}.{hint}")
    return _choice(judged, picked, picked.options, reason)


def _pick(
    judged: Sequence[_Judged[R]], prefer: Sequence[str], decide: Decide | None, path: str
) -> tuple[_Judged[R] | None, str]:
    usable = {item.name: item for item in judged if item.usable}
    for name in prefer:
        if name in usable:
            return usable[name], f"the first of {path.rpartition('.')[0]}.prefer that works here"
    automatic = [item for item in judged if item.usable and item.contribution.record.automatic]
    automatic.sort(key=lambda item: -item.contribution.record.rank)  # stable: first contributed, first
    if not automatic:
        return None, ""
    decision = decide([item.name for item in automatic]) if decide else None
    if decision is not None:
        return usable[decision.name], f"decided by plugin {decision.plugin!r}"
    reason = "the only one that works here" if len(automatic) == 1 else "the highest rank of those that work here"
    return automatic[0], reason


def build_record(record: Record, label: str, *arguments: Any) -> Any:
    """``record.build(*arguments)``. What fails there becomes a :class:`PluginError` naming the plugin, unless it
    is one of Octavo's own errors already."""
    try:
        return record.build(*arguments)
    except OctavoError:
        raise
    except Exception as error:
        raise PluginError(f"plugin {label} can't build {record.name!r}: {type(error).__name__}: {error}") from error


def candidates(contributions: Sequence[Contribution[Any]], ctx: Context) -> tuple[Candidate, ...]:
    """How each would do, where none is chosen."""
    return tuple(_judge(item, ctx, None).candidate for item in contributions)


def _judge(contribution: Contribution[R], ctx: Context, judge: Judge | None) -> _Judged[R]:
    record = contribution.record
    try:
        reason: Any = judge(record, ctx) if judge else record.supports(ctx)
        if reason is not None and not isinstance(reason, str):
            reason = f"its supports() answered {reason!r} instead of None or a reason"
    except Exception as error:
        # Broken, but perhaps not wanted: it is left out here and an error where it is named.
        _log.warning("plugin %s: supports() of %r failed", contribution.label, record.name, exc_info=True)
        reason = f"its supports() failed: {type(error).__name__}: {error}"
    supported, options = reason is None, None
    if supported:
        try:
            options = record.options()
        except ValidationError as error:
            missing = ".".join(str(part) for part in error.errors()[0]["loc"])
            reason = f"needs options ({missing}), so it must be named"
        else:
            reason = None if record.automatic else "works here, but only where it is named"
    candidate = Candidate(record.name, contribution.plugin, supported, reason or "")
    return _Judged(contribution, options, candidate)


def _named(
    slot: Slot,
    judged: Sequence[_Judged[R]],
    found: _Judged[R],
    options: Section | None,
    reason: str,
    hint: str,
) -> Choice[R]:
    if not found.candidate.supported:
        others = [item.name for item in judged if item.candidate.supported]
        would = f"These would work: {', '.join(others)}." if others else f"Nothing else would either.{hint}"
        raise PluginError(
            f"{slot.noun} {found.name!r} ({reason}; plugin {found.contribution.label}) can't be used here: "
            f"{found.candidate.reason}. {would}"
        )
    chosen = options if isinstance(options, found.contribution.record.options) else found.options
    if chosen is None:
        raise PluginError(f"{slot.noun} {found.name!r} {found.candidate.reason.partition(',')[0]}.")
    return _choice(judged, found, chosen, reason)


def _choice(judged: Sequence[_Judged[R]], picked: _Judged[R], options: Section | None, reason: str) -> Choice[R]:
    assert options is not None  # usable records have options
    contribution = picked.contribution
    return Choice(
        contribution.record,
        contribution.plugin,
        contribution.distribution,
        options,
        reason,
        tuple(item.candidate for item in judged),
        contribution.label,
    )


def _missing(slot: Slot, judged: Sequence[_Judged[R]], use: str, path: str, hint: str) -> str:
    names = [item.name for item in judged]
    if not names:
        return f"{path}: no {slot.noun} {use!r}: the slot is empty, as no loaded plugin contributes one.{hint}"
    close = nearest(use, names)
    return f"{path}: there is no {slot.noun} named {use!r}.{close or hint} Available: {', '.join(names)}."


def _reasons(judged: Sequence[_Judged[Any]]) -> str:
    return "; ".join(f"{item.name}: {item.candidate.reason}" for item in judged)
