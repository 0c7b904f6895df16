"""The built-in executor: one rank, in the engine's own process and thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from octavo.contracts.executor import PendingStep, StepPlan
from octavo.contracts.lora import AdapterFacts
from octavo.loading.progress import progress_bar
from octavo.run.adapters import RunnerAdapters
from octavo.run.build import build_parts, load_model
from octavo.run.cpu import prepare_cpu
from octavo.run.draft_kit import build_device_proposer, graph_queries, longest_guess
from octavo.run.dtypes import torch_dtype
from octavo.run.graphs import LENGTHS, DecodeGraphs
from octavo.run.guess_ends import Noise, Place
from octavo.run.guess_graphs import GuessGraphs
from octavo.run.guesser import Guesser
from octavo.run.measure import measure_peak
from octavo.run.memory import divide_memory, empty_cache
from octavo.run.prompt_graphs import PromptGraphs
from octavo.run.rehearse import rehearsed
from octavo.run.rows import Rows
from octavo.run.runner import Runner
from octavo.run.sampler import Sampler

if TYPE_CHECKING:
    from octavo.assemble import Resolved


class InlineExecutor:
    """A :class:`octavo.contracts.executor.Executor`. On a GPU one step may run while another is planned."""

    def __init__(self, resolved: Resolved) -> None:
        ctx, config = resolved.context, resolved.config
        device = torch.device(ctx.device.torch_name)
        if device.type == "cpu":
            prepare_cpu(config.model.threads or ctx.device.cores)
        parts = build_parts(resolved, device)
        with rehearsed(resolved, parts), progress_bar(ctx.model.name) as progress:
            model, weights = load_model(resolved, parts, progress)
        guessing = build_device_proposer(resolved, model, device)
        proposer, bodies = guessing or (None, [])
        kv_dtype = torch_dtype(ctx.kv_dtype)
        weights += sum(body.memory.weights for body in bodies)
        later = parts.lora.later_bytes if parts.lora else 0
        weights += parts.lora.reserved_bytes + later if parts.lora else 0
        peak = None
        if device.type == "cuda":
            peak = measure_peak(model, parts.attention, ctx, kv_dtype, device)
            weights = torch.cuda.memory_allocated(device) + later
        drafts = [body.memory for body in bodies]
        self.memory = divide_memory(resolved, model, parts.attention, weights, peak, drafts)
        self.depth = 0 if device.type == "cpu" else 1
        self.num_blocks = self.memory.num_blocks
        caches = [
            empty_cache(parts.attention.kv_shape(spec, self.num_blocks), kv_dtype, device)
            for spec in model.attention_layers
        ]
        for body in bodies:
            body.allocate(self.num_blocks)
        self.longest_guess = longest_guess(proposer)
        rows = Rows(ctx.max_sequences, ctx.max_length, ctx.block_size, device, self.longest_guess)
        sampler = Sampler(
            ctx.model.vocab_size,
            ctx.max_sequences,
            device,
            resolved.build_processors(),
            parts.ops.draw,
            parts.ops.mask_logits,
        )
        self.adapter_slots = parts.lora.slots if parts.lora else 0
        adapters = RunnerAdapters(parts.lora, ctx.max_sequences, device) if parts.lora else None
        safe = device.type == "cuda" and _graph_safe(resolved)
        queries = min([graph_queries(resolved, parts.attention), *(body.graph_queries for body in bodies)])
        guesser = None
        graphs: list[DecodeGraphs | PromptGraphs] = []
        if proposer is not None:
            noise = Noise(ctx.max_sequences, ctx.model.vocab_size, device, parts.ops.draw)
            vocab_size, captured = ctx.model.vocab_size, safe and queries > 1
            place = Place(rows, noise, ctx.block_size, ctx.max_length, vocab_size, on_device=captured)
            with torch.inference_mode():
                guesser = Guesser(proposer, place, GuessGraphs(proposer, place, device) if captured else None)
        if safe:
            taps = () if guesser is None else guesser.tap_layers
            longest = self.longest_guess or (LENGTHS[-1] if resolved.speculates else 0)
            with torch.inference_mode():
                decodes = DecodeGraphs(
                    model, parts.attention, caches, rows, ctx.block_size, device, adapters, taps, longest, queries
                )
                graphs.append(decodes)
                if guesser is None and adapters is None:
                    most = min(ctx.max_batch_tokens, ctx.max_length)
                    graphs.append(PromptGraphs(model, parts.attention, caches, rows, ctx.block_size, device, most))
        self._adapters = adapters
        self._runner: Runner | None = Runner(
            model, parts.attention, caches, rows, sampler, ctx.block_size, device, graphs, adapters, guesser
        )

    def launch(self, plan: StepPlan) -> PendingStep:
        if self._runner is None:
            raise RuntimeError("The executor has been stopped.")
        return self._runner.launch(plan)

    def add_adapter(self, key: int, path: str) -> AdapterFacts:
        """See :class:`octavo.contracts.lora.AdapterExecutor`."""
        if self._adapters is None:
            raise RuntimeError("The executor was built without LoRA.")
        return self._adapters.add(key, path)

    def remove_adapter(self, key: int) -> None:
        """See :class:`octavo.contracts.lora.AdapterExecutor`."""
        if self._adapters is not None:
            self._adapters.remove(key)

    def stop(self) -> None:
        """Drop the model and the caches."""
        self._runner = self._adapters = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _graph_safe(resolved: Resolved) -> bool:
    """Whether all that runs in a decode step may be captured."""
    records = [resolved.choices[slot].record for slot in ("attention", "lora") if slot in resolved.choices]
    return all(record.graph_safe for record in records)
