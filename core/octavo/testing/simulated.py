"""A simulated device: no model and no tensors, but every rule that a real one relies on.

It keeps for each KV slot a digest of the tokens that its keys and values would depend on, and compares what a row
reads with what it should read. Stale or wrong prefix blocks, sharing before the contents exist and blocks given to
two requests are found in the step in which they would do harm. Tokens depend on the whole history of a request and
on nothing else, so that the right answer is known without running anything: :func:`expected_answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import msgspec
import numpy as np

from octavo.cache.blocks import EngineInvariantError
from octavo.contracts.executor import GUESSED, Masks, RowLogprobs, RowStart, StepPlan, StepResult
from octavo.params import SamplingParams

VOCABULARY: Final = 64
"""Default number of token ids. Small, so that stop tokens do come up."""


def expected_answer(
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    adapter: int = 0,
    vocab_size: int = VOCABULARY,
    allowed: Callable[[list[int]], np.ndarray] | None = None,
) -> list[int]:
    """The tokens that :class:`SimulatedExecutor` gives a request, whatever else is running. ``allowed``: bool
    [vocab_size], what a grammar lets follow an answer's tokens."""
    start = RowStart(0, list(prompt), len(prompt), params, seed, sorted(stop_ids), [])
    row = _Row(start, adapter)
    answer: list[int] = []
    while len(answer) < max_tokens:
        token = row.next_token(vocab_size, None if allowed is None else allowed(answer))
        answer.append(token)
        row.append(token)
        if token in start.stop_ids and len(answer) >= params.min_tokens:
            break
    return answer


@dataclass(slots=True)
class SimulatedStep:
    """A launched step. Its result is fixed when it is sampled: at launch, unless it has to wait for masks."""

    _sampling: Callable[[Masks | None], StepResult]
    _masked: bool
    _result: StepResult | None = None

    def sample(self, masks: Masks | None) -> None:
        """See :class:`octavo.contracts.executor.PendingStep`."""
        _require(self._masked and self._result is None, "A step is sampled that does not wait for masks.")
        self._result = self._sampling(masks)

    def result(self) -> StepResult:
        """What the step produced."""
        if self._result is None:
            raise EngineInvariantError("A step is read before it was sampled.")
        return self._result


class SimulatedExecutor:
    """Implements :class:`octavo.contracts.executor.Executor`.

    A plan that a device could not run, or that would give a wrong answer, raises :class:`EngineInvariantError`.
    Rows whose history contains the token ``poison`` fail, as a model whose logits are not finite. Where plans ask
    for guesses, each is right with probability ``rightness``; ``holes`` counts positions that the guesser's own
    cache lacked.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        depth: int = 0,
        max_sequences: int = 4096,
        max_batch_tokens: int | None = None,
        vocab_size: int = VOCABULARY,
        poison: int | None = None,
        longest_guess: int = 0,
        rightness: float = 0.7,
    ) -> None:
        self.longest_guess = longest_guess
        self.holes = 0
        self._rightness, self._random = rightness, Random(1)
        self._seen: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]  # by the guesser
        self.depth = depth
        self.num_blocks = num_blocks
        self._block_size = block_size
        self._max_sequences = max_sequences
        self._max_batch_tokens = max_batch_tokens
        self._vocab_size = vocab_size
        self._poison = poison
        self._rows: dict[int, _Row] = {}
        self._adapters: dict[int, int] = {}  # key by slot
        self._cache: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self._last_step = 0
        self._held: SimulatedStep | None = None  # the last step, if it waits for masks

    @property
    def active_rows(self) -> frozenset[int]:
        """Rows that were started and not ended."""
        return frozenset(self._rows)

    def launch(self, plan: StepPlan) -> SimulatedStep:
        """Check the plan, run it, and keep its result."""
        held = self._held
        _require(held is None or held._result is not None, "A step is launched before the last was sampled.")
        _require(plan.number > self._last_step, f"Step {plan.number} comes after step {self._last_step}.")
        self._last_step = plan.number
        self._apply_changes(plan)
        plan = self._with_guesses(plan)
        self._check_shape(plan)
        work = list(zip(plan.rows, plan.positions, plan.counts, plan.samples, strict=True))
        written: set[tuple[int, int]] = set()
        drafts = [plan.drafts.get(index, []) for index in range(len(work))]
        digests = [self._rows[row].ahead(draft) for row, draft in zip(plan.rows, drafts, strict=True)]
        for (row, position, count, _), known in zip(work, digests, strict=True):
            self._write(row, position, count, known, written)
        for (row, position, count, _), known in zip(work, digests, strict=True):
            self._read(row, position + count, known)
        prompts = plan.num_tokens > len(plan.rows) + sum(map(len, plan.drafts.values()))
        for (row, position, count, _), known in zip(work, digests, strict=True):
            if prompts:
                self._see(row, position, count, known)
        step = SimulatedStep(lambda masks: self._finish(plan, masks), bool(plan.masked))
        if plan.masked:
            self._held = step
        else:
            step._result = self._finish(plan, None)
        return step

    def _finish(self, plan: StepPlan, masks: Masks | None) -> StepResult:
        result = self._sample(plan, masks)
        if plan.guess:
            self._guess(plan)
        return result

    def stop(self) -> None:
        """Forget everything."""
        self._rows.clear()

    def _apply_changes(self, plan: StepPlan) -> None:
        for row in plan.ends:
            _require(row in self._rows, f"Row {row} is ended, but it was not started.")
            del self._rows[row]
        for slot, key in plan.adapters:
            used = any(row.start.adapter_slot == slot for row in self._rows.values())
            _require(slot > 0 and not used, f"Adapter slot {slot} changes under a running row.")
            self._adapters[slot] = key
        for start in plan.starts:
            _require(start.row not in self._rows, f"Row {start.row} is started twice.")
            _require(0 <= start.row < self._max_sequences, f"Row {start.row} is out of range.")
            _require(0 < start.prompt_length <= len(start.tokens), f"Row {start.row} has a wrong prompt length.")
            self._rows[start.row] = _Row(start, self._adapters.get(start.adapter_slot, start.adapter_slot))
        for row, index, blocks in plan.blocks:
            _require(row in self._rows, f"Row {row} gets blocks, but it was not started.")
            table = self._rows[row].table
            if self._rows[row].guessed_for:  # blocks that wrong guesses had were given back
                del table[index:]
            _require(index == len(table), f"Row {row} gets blocks at index {index}; it has {len(table)}.")
            for block in blocks:
                _require(0 < block < self.num_blocks, f"Row {row} gets block {block}, which does not exist.")
                _require(block not in table, f"Row {row} gets block {block} twice.")
                table.append(block)

    def _check_shape(self, plan: StepPlan) -> None:
        _require(bool(plan.rows), "The plan has no rows.")
        _require(len(set(plan.rows)) == len(plan.rows), "A row stands twice in one plan.")
        _require(min(plan.counts) > 0, "A row computes no token.")
        singles = [count == 1 for count in plan.counts]
        _require(singles == sorted(singles, reverse=True), "Rows of one token must come first.")
        if self._max_batch_tokens is not None:
            _require(plan.num_tokens <= self._max_batch_tokens, f"The step has {plan.num_tokens} tokens.")
        for index, row in enumerate(plan.rows):
            _require(row in self._rows, f"Row {row} computes, but it was not started.")
            draft = plan.drafts.get(index, [])
            _require(all(0 <= token < self._vocab_size for token in draft), f"Row {row} has an impossible draft.")
            end = plan.positions[index] + plan.counts[index]
            known = len(self._rows[row].tokens) + len(draft)
            _require(not draft or end == known, f"Row {row} has a draft, but is not complete.")
            _require(end <= known, f"Row {row} computes up to position {end}, but only {known} tokens are known.")
            complete = end == known and not self._rows[row].start.pooling
            _require(plan.samples[index] == complete, f"Row {row} must sample if, and only if, it is complete.")

    def _with_guesses(self, plan: StepPlan) -> StepPlan:
        """The plan with the tokens of guesses in place of their marks; and what it tells of missed tokens."""
        for row in plan.rows if plan.guess else ():
            self._rows[row].guessed_for = True
        for row, (position, tokens) in plan.behind.items():
            state = self._rows[row]
            told = state.tokens[position : position + len(tokens)]
            _require(told == tokens, f"Row {row} is told other tokens than it has.")
            self._see(row, position, len(tokens), state.digests)
        drafts = {}
        for index, draft in plan.drafts.items():
            guesses = self._rows[plan.rows[index]].guesses
            marked = draft == [GUESSED] * len(draft)
            _require(not marked or len(draft) <= len(guesses), f"Row {plan.rows[index]} has no such guess.")
            drafts[index] = guesses[: len(draft)] if marked else draft
        return msgspec.structs.replace(plan, drafts=drafts)

    def _see(self, row: int, position: int, count: int, digests: list[int]) -> None:
        """The guesser computes these positions."""
        table = self._rows[row].table
        for place in range(position, position + count):
            self._seen[table[place // self._block_size]][place % self._block_size] = digests[place]

    def _guess(self, plan: StepPlan) -> None:
        for index, row in enumerate(plan.rows):
            if not plan.samples[index]:
                continue
            state, room = self._rows[row], plan.room[index]
            known, state.guesses = len(state.tokens), []
            for _ in range(plan.guess):
                token = state.next_token(self._vocab_size)
                wrong = self._random.random() >= self._rightness
                state.guesses.append((token + 1) % self._vocab_size if wrong else token)
                state.append(token)
            end = min(known + plan.guess - 1, room)
            ahead = _digests_of(state.digests[:known], state.guesses)
            self._see(row, known - 2, end - known + 2, ahead)
            for place in range(min(known, room)):
                block = state.table[place // self._block_size]
                self.holes += self._seen[block][place % self._block_size] != state.digests[place]
            del state.tokens[known:], state.digests[known:]

    def _write(
        self, row: int, position: int, count: int, digests: list[int], written: set[tuple[int, int]]
    ) -> None:
        state = self._rows[row]
        if state.computed < 0:  # the first chunk: what lies before it is taken from the prefix cache
            _require(position % self._block_size == 0, f"Row {row} starts at {position}, inside a block.")
            _require(not position or state.start.pooling != "mean", f"Row {row} misses the beginning of its mean.")
        else:
            _require(
                position == state.computed, f"Row {row} has computed {state.computed}, not {position}, tokens."
            )
        room = len(state.table) * self._block_size
        _require(position + count <= room, f"Row {row} has blocks for {room} tokens, not for {position + count}.")
        for place in range(position, position + count):
            block, offset = state.table[place // self._block_size], place % self._block_size
            _require((block, offset) not in written, f"Two rows write slot {offset} of block {block}.")
            written.add((block, offset))
            self._cache[block][offset] = digests[place]
        state.computed = position + count

    def _read(self, row: int, end: int, digests: list[int]) -> None:
        """All positions before ``end`` must hold what this row's own tokens would have put there."""
        state, size = self._rows[row], self._block_size
        for index in range(-(-end // size)):
            expected = digests[index * size : min((index + 1) * size, end)]
            block = state.table[index]
            if self._cache[block][: len(expected)] != expected:
                raise EngineInvariantError(
                    f"Row {row} reads block {block} (index {index}), which holds other tokens."
                )

    def _sample(self, plan: StepPlan, masks: Masks | None) -> StepResult:
        allowed = self._allowed(plan, masks)
        tokens = np.full(len(plan.rows), -1, dtype=np.int64)
        result = StepResult(plan.number, tokens, {}, {}, {})
        for index, row in enumerate(plan.rows):
            state = self._rows[row]
            start, end = plan.positions[index], plan.positions[index] + plan.counts[index]
            if self._poison is not None and self._poison in state.tokens[:end]:
                result.failed[index] = "The logits are not finite."
            if state.start.params.prompt_logprobs is not None:
                last = min(end, state.start.prompt_length - 1)
                scores = [state.score(place, state.tokens[place + 1]) for place in range(start, last)]
                if scores:
                    result.prompt_logprobs[index] = scores
            if state.start.pooling and end == state.start.prompt_length:
                result.pooled[index] = state.pooled()
            if plan.samples[index]:
                fresh = self._new_tokens(state, plan.drafts.get(index, []), allowed.get(index))
                if state.start.params.logprobs is not None:
                    known = len(state.tokens) - len(fresh)
                    result.logprobs[index] = [state.score(known - 1 + i, token) for i, token in enumerate(fresh)]
                if len(fresh) > 1:
                    result.accepted[index] = fresh[:-1]
                tokens[index] = -1 if index in result.failed else fresh[-1]
        return result

    def _allowed(self, plan: StepPlan, masks: Masks | None) -> dict[int, np.ndarray]:
        """By index: for each position of a masked row, bool [vocabulary]."""
        if masks is None:
            return {}
        _require(set(masks.rows) <= set(plan.masked), "Rows are masked that the plan does not name.")
        _require(masks.rows == sorted(set(masks.rows)), "The masked rows are not in order.")
        counts = [1 + len(plan.drafts.get(index, [])) for index in masks.rows]
        _require(len(masks.bits) == sum(counts), f"There are {len(masks.bits)} masks, not {sum(counts)}.")
        flags = np.unpackbits(masks.bits.view(np.uint8), axis=1, bitorder="little").astype(bool)
        _require(flags.shape[1] >= self._vocab_size, "The masks do not cover the vocabulary.")
        ends = np.cumsum(counts).tolist()
        return {
            index: flags[end - count : end, : self._vocab_size]
            for index, count, end in zip(masks.rows, counts, ends, strict=True)
        }

    def _new_tokens(self, state: _Row, draft: list[int], allowed: np.ndarray | None) -> list[int]:
        """Tokens while they are those of the draft, and the first that is not. What the draft had wrong is undone:
        the row has computed nothing of it, and its blocks are gone."""
        fresh: list[int] = []
        for place, guess in enumerate([*draft, None]):
            fresh.append(state.next_token(self._vocab_size, None if allowed is None else allowed[place]))
            state.append(fresh[-1])
            if guess != fresh[-1]:
                break
        state.computed = len(state.tokens) - 1
        if not state.guessed_for:
            del state.table[-(-state.computed // self._block_size) :]
        return fresh


@dataclass(slots=True)
class _Row:
    """A request as the device knows it. ``digests[i]`` stands for tokens 0 to i, and the adapter."""

    start: RowStart
    adapter: int = 0
    tokens: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    computed: int = -1
    guesses: list[int] = field(default_factory=list)
    guessed_for: bool = False

    def __post_init__(self) -> None:
        for token in self.start.tokens:
            self.append(token)

    def append(self, token: int) -> None:
        parent = self.digests[-1] if self.digests else self.adapter
        self.tokens.append(token)
        self.digests.append(hash((parent, token)))  # integers: the same in every process

    def ahead(self, draft: Sequence[int]) -> list[int]:
        """Digests of the known tokens and of ``draft`` behind them."""
        return _digests_of(self.digests, draft)

    def next_token(self, vocab_size: int, allowed: np.ndarray | None = None) -> int:
        token = hash((self.digests[-1], self.start.seed)) % vocab_size
        short = len(self.tokens) - self.start.prompt_length < self.start.params.min_tokens
        for _ in range(vocab_size):
            barred = (short and token in self.start.stop_ids) or (allowed is not None and not allowed[token])
            if not barred:
                break
            token = (token + 1) % vocab_size
        return token

    def pooled(self) -> np.ndarray:
        """Made-up hidden states, float32 [4], of all tokens."""
        numbers = [hash((self.digests[-1], self.start.pooling == "mean", place)) % 1000 for place in range(4)]
        return np.array(numbers, np.float32) + 1

    def score(self, place: int, token: int) -> RowLogprobs:
        """Made-up log-probability of ``token`` after position ``place``."""
        logprob = -(hash((self.digests[place], token)) % 1000) / 100
        return RowLogprobs(token, logprob, 1, [token], [logprob])


def _digests_of(digests: list[int], draft: Sequence[int]) -> list[int]:
    for token in draft:
        digests = [*digests, hash((digests[-1], token))]
    return digests


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise EngineInvariantError(problem)
