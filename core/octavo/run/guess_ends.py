"""Where rows end on the device: what a proposer starts from, and how it picks tokens as the core would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import StepBatch
from octavo.contracts.executor import RowStart
from octavo.ops.noise import draw, mixed_seeds, row_keys_on_device, token_words
from octavo.run.rows import Rows
from octavo.run.upload import upload

_GREEDY = 1e-5
"""The temperature that stands for 0; requests have larger ones or none."""


class Noise:
    """Each row's temperature and seed on the device, for tokens at positions that the host does not know."""

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        device: torch.device,
        race: Callable[..., tuple[Tensor, Tensor]] = draw,
    ) -> None:
        self._device, self._race = device, race
        self._drawn = np.zeros(max_rows + 1, np.bool_)
        self._temperatures = torch.full((max_rows + 1, 1), _GREEDY, device=device)
        self._seeds = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)
        self._words = torch.from_numpy(token_words(vocab_size)).to(device)

    def admit(self, starts: Sequence[RowStart]) -> None:
        """Requests take their rows."""
        rows = np.array([start.row for start in starts], np.int64)
        temperatures = np.array(
            [0.0 if start.params.greedy else start.params.temperature for start in starts], np.float32
        )
        seeds = mixed_seeds(np.array([start.seed & (2**64 - 1) for start in starts], np.uint64))
        self._drawn[rows] = temperatures > 0
        bits = np.maximum(temperatures, _GREEDY).view(np.int32).astype(np.int64)
        at, new_seeds, new_bits = upload((rows, seeds, bits), self._device)
        self._seeds.index_copy_(0, at, new_seeds)
        self._temperatures.index_copy_(0, at, new_bits.int().view(torch.float32).unsqueeze(1))

    def wanted(self, rows: Sequence[int]) -> bool:
        """Whether one of the rows is not greedy."""
        return bool(self._drawn[np.asarray(rows, np.int64)].any())

    def pick(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Tokens int64 [n], with the noise that the sampler has for the same rows and positions."""
        temperatures = self._temperatures[rows]
        keys = row_keys_on_device(self._seeds[rows], positions)
        drawn, _ = self._race(logits.float(), temperatures, self._words, keys)
        return torch.where(temperatures.squeeze(1) > _GREEDY, drawn, logits.argmax(dim=1))


@dataclass(frozen=True, slots=True)
class Place:
    """What guesses of one engine have in common. ``on_device``: attention plans need no host arrays."""

    rows: Rows
    noise: Noise
    block_size: int
    max_length: int
    vocab_size: int
    on_device: bool


@dataclass(frozen=True, slots=True)
class GuessEnds:
    """A :class:`octavo.contracts.proposer.Ends`. ``numbers`` int64 [n] are rows, the padding row among them;
    ``room`` int64 [n] how many tokens their blocks hold."""

    place: Place
    numbers: Tensor
    positions: Tensor
    tokens: Tensor
    carried: Tensor | None
    room: Tensor
    drawn: bool

    def batch(self, first: Tensor, queries: int = 1) -> StepBatch:
        """Tokens behind a row's blocks are written to block 0, which is nobody's, and not found again."""
        place, count = self.place, len(self.numbers)
        device, size = first.device, place.block_size
        at = first.unsqueeze(1) + torch.arange(queries, device=device)
        positions = at.clamp(0, place.max_length - 1)
        live = (self.numbers < place.rows.max_rows).unsqueeze(1)
        tables = place.rows.device_tables.index_select(0, self.numbers)
        blocks = tables.gather(1, positions // size).long()
        inside = live & (at >= 0) & (at < self.room.unsqueeze(1))
        slots = torch.where(inside, blocks * size, 0) + positions % size
        lengths = torch.where(live.squeeze(1), (first + queries).clamp(0, place.max_length), 0).int()
        if place.on_device:
            lengths_host = np.ones(count, np.int64)
            tables_host = np.zeros((count, 1), np.int32)
        else:
            lengths_host, tables_host = lengths.cpu().numpy(), tables.cpu().numpy()
        return StepBatch(
            num_tokens=count * queries,
            num_rows=count,
            decodes=count if queries == 1 else 0,
            positions=positions.view(-1),
            slots=slots.view(-1),
            block_tables=tables,
            seq_lens=lengths,
            query_starts=torch.arange(0, count * queries + 1, queries, dtype=torch.int32, device=device),
            seq_lens_host=lengths_host,
            query_lens_host=np.full(count, queries, np.int64),
            block_tables_host=tables_host,
        )

    def fill(self, other: GuessEnds) -> None:
        """Take over the ends of ``other``'s rows, the first of these; the rest is padding."""
        count = len(other.numbers)
        self.numbers.fill_(self.place.rows.max_rows)[:count].copy_(other.numbers)
        for mine, theirs in (
            (self.positions, other.positions),
            (self.tokens, other.tokens),
            (self.room, other.room),
            (self.carried, other.carried),
        ):
            if mine is not None and theirs is not None:
                mine[:count].copy_(theirs)

    def pick(self, logits: Tensor, positions: Tensor) -> Tensor:
        """See :class:`octavo.contracts.proposer.Ends`."""
        logits = logits[:, : self.place.vocab_size]
        if not self.drawn:
            return logits.argmax(dim=1)
        return self.place.noise.pick(logits, self.numbers, positions)
