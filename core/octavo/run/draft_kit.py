"""Layers for proposers that run on the device: loaded like any model, cached in the target's own blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from octavo.contracts.attention import AttentionBackend, StepBatch
from octavo.contracts.model import CausalLM
from octavo.contracts.proposer import DeviceProposer
from octavo.errors import PluginError
from octavo.loading.progress import progress_bar
from octavo.records import ArchitectureRecord, Context, ModelProfile
from octavo.run.build import build_model, build_parts, load_model
from octavo.run.memory import DraftMemory, activation_bytes, block_bytes, empty_cache, weight_bytes

if TYPE_CHECKING:
    from octavo.assemble import Resolved

_log = logging.getLogger("octavo.speculation")


def graph_queries(resolved: Resolved, attention: AttentionBackend) -> int:
    """Queries a row of steps that attention can have captured; 0 where it can have none."""
    if not resolved.choices["attention"].record.graph_safe:
        return 0
    return int(getattr(attention, "graph_queries", 1))


class Body:
    """A :class:`octavo.contracts.proposer.DraftBody`. On the device ``meta`` nothing is loaded."""

    def __init__(self, resolved: Resolved, device: torch.device) -> None:
        self.profile: ModelProfile = resolved.context.model
        self.caches: Sequence[Tensor] = ()
        self._device, self._kv_dtype = device, getattr(torch, resolved.context.kv_dtype)
        parts = build_parts(resolved, device)
        self._attention = parts.attention
        self.graph_queries = graph_queries(resolved, parts.attention)
        self.model: Any
        if device.type == "meta":
            self.model = build_model(resolved, parts)
            weights = weight_bytes(self.model)
        else:
            with progress_bar(self.profile.name) as progress:
                self.model, weights = load_model(resolved, parts, progress)
        self.memory = DraftMemory(
            weights, block_bytes(resolved, self.model, parts.attention), activation_bytes(resolved)
        )

    def plan(self, batch: StepBatch) -> Any:
        """See :class:`octavo.contracts.proposer.DraftBody`."""
        return self._attention.plan(batch)

    def allocate(self, num_blocks: int) -> None:
        """Make the cache: as many blocks as the target's has."""
        self.caches = [
            empty_cache(self._attention.kv_shape(spec, num_blocks), self._kv_dtype, self._device)
            for spec in self.model.attention_layers
        ]


class Kit:
    """A :class:`octavo.contracts.proposer.DraftKit`; ``bodies`` are those that were asked for."""

    def __init__(self, resolved: Resolved, model: CausalLM, device: torch.device) -> None:
        self.context, self.model = resolved.context, model
        self.bodies: list[Body] = []
        self._resolved, self._device = resolved, device

    def body(
        self,
        path: str,
        *,
        loader: str = "auto",
        dtype: str = "auto",
        quantization: str = "auto",
        build: Callable[[Context, Any], Any] | None = None,
        described: bool = True,
    ) -> Body:
        """See :class:`octavo.contracts.proposer.DraftKit`."""
        architecture = None
        if build is not None:
            made = build
            architecture = ArchitectureRecord(
                name="draft", summary="A proposer's own.", build=lambda ctx, options, parts: made(ctx, parts)
            )
        resolved = self._resolved.for_draft(
            path,
            loader=loader,
            dtype=dtype,
            quantization=quantization,
            architecture=architecture,
            described=described,
        )
        ours, theirs = self.context.max_length, resolved.context.model.max_length
        if theirs < ours:
            _log.warning("%s is made for %d tokens; behind them its guesses will be poor.", path, theirs)
        body = Body(resolved, self._device)
        self.bodies.append(body)
        return body


def build_device_proposer(
    resolved: Resolved, model: CausalLM, device: torch.device
) -> tuple[DeviceProposer, list[Body]] | None:
    """The proposer, and its layers without caches; ``None`` where the configuration names none of this kind."""
    if not resolved.guesses_on_device:
        return None
    choice, kit = resolved.choices["proposer"], Kit(resolved, model, device)
    proposer: DeviceProposer = choice.build(resolved.context, choice.options, kit)
    return proposer, kit.bodies


def longest_guess(proposer: DeviceProposer | None) -> int:
    """The proposer's longest draft, 0 without one. Raises :class:`PluginError` where it says nothing sensible."""
    if proposer is None:
        return 0
    most = proposer.max_tokens
    if not isinstance(most, int) or most < 1:
        raise PluginError(f"a proposer's max_tokens must be an integer from 1 up, not {most!r}.")
    return most
