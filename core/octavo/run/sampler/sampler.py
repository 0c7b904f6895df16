"""One step's tokens from its logits. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octavo.contracts.executor import Masks, RowStart
from octavo.contracts.sampling import LogitsProcessor
from octavo.ops.noise import draw, row_keys, token_words
from octavo.ops.reference import mask_logits
from octavo.run.sampler.allowed import AllowedTokens
from octavo.run.sampler.bad_words import BadWords
from octavo.run.sampler.bias import LogitBias
from octavo.run.sampler.checks import check_ids
from octavo.run.sampler.feature import Feature, Modifier, Remembering, Truncation
from octavo.run.sampler.logprobs import AskedLogprobs, Logprobs, SampledLogprobs, logprobs_of
from octavo.run.sampler.masks import apply_masks
from octavo.run.sampler.min_p import MinP
from octavo.run.sampler.min_tokens import MinTokens
from octavo.run.sampler.penalties import Penalties
from octavo.run.sampler.processors import Processors
from octavo.run.sampler.rows import IntArray, Layout, Subset, upload
from octavo.run.sampler.top import TopKTopP
from octavo.run.verify import Drafts


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """A step's result, in the order of its rows.

    ``tokens`` int64 [n] and ``finite`` bool [n] are on the device. Where ``finite`` is false the logits held NaN
    or +inf, or everything was barred, and the token means nothing (it is in range all the same). ``failed``, by
    place in the batch: a plugin's error, known on the host. ``kept`` bool [n], in a step with drafts: where all
    drafted tokens before were right; other positions mean nothing.
    """

    tokens: torch.Tensor
    finite: torch.Tensor
    logprobs: SampledLogprobs | None
    failed: Mapping[int, str]
    kept: torch.Tensor | None = None


class Sampler:
    """Samples for up to ``max_rows`` requests at a time, each in a row of its own.

    The order of things, as in vLLM: masks of structured outputs; log-probabilities of the model's distribution over
    what these leave; allowed ids, bad words,
    minimum length, bias, penalties, plugins' processors; greedy rows take the highest logit; for the others
    temperature, min_p, top_k, top_p, and a draw. A row that asks for none of this costs nothing but the maximum.
    """

    def __init__(
        self,
        vocab_size: int,
        max_rows: int,
        device: torch.device,
        processors: Sequence[LogitsProcessor] = (),
        draw: Callable[..., tuple[torch.Tensor, torch.Tensor]] = draw,
        mask_logits: Callable[..., None] = mask_logits,
    ) -> None:
        self._vocab_size = vocab_size
        self._max_rows = max_rows
        self._device = device
        self._race = draw
        self._mask_logits = mask_logits
        self._processors = tuple(processors)
        self._plugins = Processors(processors, max_rows)
        penalties = Penalties(vocab_size, max_rows, device)
        bad_words = BadWords(vocab_size, max_rows, device)
        self._modifiers: tuple[Modifier, ...] = (
            AllowedTokens(vocab_size, max_rows, device),
            bad_words,
            MinTokens(vocab_size, max_rows, device),
            LogitBias(vocab_size, max_rows, device),
            penalties,
            self._plugins,
        )
        self._remembering: tuple[Remembering, ...] = (bad_words, penalties, self._plugins)
        self._truncations: tuple[Truncation, ...] = (MinP(max_rows), TopKTopP(vocab_size, max_rows, device))
        self._logprobs = AskedLogprobs(max_rows)
        self._features: tuple[Feature, ...] = (*self._modifiers, *self._truncations, self._logprobs)
        self._temperature = np.zeros(max_rows, np.float32)  # 0 where greedy
        self._seeds = np.zeros(max_rows, np.uint64)
        self._words = upload(token_words(vocab_size), device)
        self._layout: Layout | None = None

    @property
    def reads_drafts(self) -> bool:
        """Whether a row's next step depends on the tokens of its draft, which the host must know then."""
        return any(feature.active for feature in self._remembering)

    def validate(self, start: RowStart) -> None:
        """Refuse what ``admit`` could not serve, with :class:`RequestError`. Keeps nothing; ``row`` is not read."""
        check_ids(start, self._vocab_size)
        for processor in self._processors:
            processor.validate(start.params)

    def admit(self, start: RowStart) -> None:
        """A request takes ``start.row``, whoever had it before. Raises :class:`RequestError` for bad ids."""
        if not 0 <= start.row < self._max_rows:
            raise ValueError(f"Row {start.row} is not one of 0 to {self._max_rows - 1}.")
        check_ids(start, self._vocab_size)
        self._layout = None
        self._temperature[start.row] = 0 if start.params.greedy else start.params.temperature
        self._seeds[start.row] = start.seed & (2**64 - 1)
        with torch.inference_mode():
            for feature in self._features:
                feature.admit(start)

    def release(self, row: int) -> None:
        """The request in ``row`` has gone."""
        self._layout = None
        self._temperature[row] = 0
        for feature in self._features:
            feature.release(row)

    def mask(self, logits: torch.Tensor, index: IntArray, masks: Masks) -> None:
        """Before ``sample``: bar what ``masks`` bars. ``index`` int64 [n]: which row of its plan each position
        is."""
        with torch.inference_mode():
            apply_masks(logits, index, masks, self._mask_logits, self._device)

    def sample(
        self, logits: torch.Tensor, rows: IntArray, positions: IntArray, drafts: Drafts | None = None
    ) -> Sampled:
        """One token for each of ``rows``.

        ``logits`` float32 [n, vocab] on the device, contiguous, may be overwritten. ``rows`` int64 [n]: distinct
        rows, unless there are ``drafts``, which say what stands before each position. ``positions`` int64 [n]:
        where in its sequence each sampled token will stand, counted from 0.
        """
        with torch.inference_mode():
            layout = self._layout_of(rows) if drafts is None else Layout(rows, self._device, drafts)
            drawn = layout.once(self, lambda: layout.subset(self._temperature[layout.rows] > 0))
            if drawn is None or not drawn.whole:
                highest, tokens = logits.max(dim=1)  # NaN counts as highest
                finite = highest.isfinite()
            asked = self._logprobs.before(logits, layout)
            changes = [feature.apply(logits, layout, positions) for feature in self._modifiers]
            if any(changes) and (drawn is None or not drawn.whole):
                tokens = logits.argmax(dim=1)
            if drawn is not None:
                chosen, scores = self._draw(drawn.take(logits), layout, drawn, positions)
                if drawn.whole:
                    tokens, finite = chosen, scores.isfinite()
                else:
                    tokens = tokens.index_copy(0, drawn.device_index, chosen)
            kept = None if drafts is None else drafts.kept(tokens)
            if any(changes):
                possible = logits.gather(1, tokens.unsqueeze(1)).squeeze(1) > -torch.inf
                finite &= possible if kept is None else possible | ~kept
                self._accept(layout, tokens, kept)
            logprobs = None if asked is None else self._logprobs.after(asked, tokens)
            return Sampled(tokens, finite, logprobs, self._plugins.failures(layout), kept)

    def prompt_logprobs(self, logits: torch.Tensor, targets: torch.Tensor, count: int) -> Logprobs:
        """For prompt positions: ``logits`` float32 [m, vocab] and the token int64 [m] that followed each.

        ``count`` is how many of the most probable tokens to add. ``to_host`` of the result gives the list.
        """
        with torch.inference_mode():
            return logprobs_of(logits, targets, count)

    def _accept(self, layout: Layout, tokens: torch.Tensor, kept: torch.Tensor | None) -> None:
        """Tell the features that remember of the tokens sampled: those that were ``kept``, a place at a time."""
        if layout.drafts is None or kept is None:
            for feature in self._remembering:
                feature.accept(layout, tokens)
            return
        on_host = kept.cpu().numpy()  # waits for the device: drafts and steps in flight exclude each other anyway
        for place in range(int(layout.drafts.places.max()) + 1):
            index = np.flatnonzero(on_host & (layout.drafts.places == place))
            inner, chosen = Layout(layout.rows[index], self._device), tokens[upload(index, self._device)]
            for feature in self._remembering:
                feature.accept(inner, chosen)

    def _layout_of(self, rows: IntArray) -> Layout:
        """The last step's layout where it still holds."""
        if self._layout is None or not np.array_equal(self._layout.rows, rows):
            self._layout = Layout(rows.copy(), self._device)
        return self._layout

    def _draw(
        self, logits: torch.Tensor, layout: Layout, drawn: Subset, positions: IntArray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens int64 [m] and their scores for the rows that are not greedy; their ``logits`` [m, vocab] are
        overwritten."""
        inner, temperature = layout.once("drawn", lambda: self._inner(drawn))
        keys = upload(row_keys(self._seeds[drawn.rows], positions[drawn.index]), self._device)
        if not any(truncation.wanted(inner) for truncation in self._truncations):
            return self._race(logits, temperature, self._words, keys)
        scaled = logits.div_(temperature)
        for truncation in self._truncations:
            truncation.apply(scaled, inner)
        return self._race(scaled, None, self._words, keys)

    def _inner(self, drawn: Subset) -> tuple[Layout, torch.Tensor]:
        inner = Layout(drawn.rows, self._device)
        return inner, inner.values(self._temperature)
