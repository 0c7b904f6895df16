"""Verification: which drafted tokens are kept.

Every position of a draft is sampled as it would be without one, for its noise belongs to the seed and the position
alone. A drafted token stays while it equals the token sampled in its place; the first that differs is replaced by
that one, and the rest is dropped. So an answer is, token for token, the one that the engine gives without drafts,
whether it is greedy or drawn; and a drafted token is kept with exactly the probability that the model gives it,
which is the best that rejection sampling can do with a guess.

For a step with drafts the sampler sees each sampling row once for each of its positions, side by side and in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.executor import GUESSED, StepPlan
from octavo.run.rows import Rows
from octavo.run.upload import upload

NONE = -1
"""No token."""


class Drafts:
    """The sampled positions of a step with drafts, n of them; a row without a draft has one.

    ``places`` int64 [n]: drafted tokens of the row that come before the one sampled there. ``firsts`` int64 [rows]:
    each sampling row's first position. ``drafted`` int64 [n]: the drafted token that is judged at the position,
    ``NONE`` at a row's last. ``guessed`` int64 [rows, width], on the device, are the tokens of drafts that the host
    does not know, which stand as ``GUESSED``.
    """

    def __init__(
        self, drafts: Sequence[Sequence[int]], device: torch.device, guessed: Tensor | None = None
    ) -> None:
        self.lengths = np.array([len(draft) for draft in drafts], np.int64)
        counts = self.lengths + 1
        self.firsts = np.cumsum(counts) - counts
        self.places = np.arange(counts.sum()) - np.repeat(self.firsts, counts)
        self.drafted = np.array([token for draft in drafts for token in (*draft, NONE)], np.int64)
        self.device = device
        self._starts = np.repeat(self.firsts, counts)
        of_row = np.repeat(np.arange(len(counts)), counts)
        drafted, starts, firsts, row, places = upload(
            (self.drafted, self._starts, self.firsts, of_row, self.places), device
        )
        if guessed is not None:
            theirs = guessed[row, places.clamp_max(guessed.shape[1] - 1)]
            drafted = torch.where(drafted == GUESSED, theirs, drafted)
        self._sent = (drafted, starts, firsts)

    @staticmethod
    def of(plan: StepPlan, index: np.ndarray, rows: Rows, device: torch.device) -> Drafts | None:
        """Those of the plan's rows ``index``, which sample; ``None`` where nothing was drafted."""
        if not plan.drafts:
            return None
        drafts = [plan.drafts.get(place, ()) for place in index.tolist()]
        guessed = None
        if any(GUESSED in draft for draft in drafts):
            (numbers,) = upload((np.asarray(plan.rows, np.int64)[index],), device)
            guessed = rows.guesses.index_select(0, numbers)
        return Drafts(drafts, device, guessed)

    def kept(self, tokens: Tensor) -> Tensor:
        """Of ``tokens`` int64 [n], sampled at the positions: bool [n], true where all drafted tokens before the
        position were right. On the device, without waiting for it."""
        drafted, starts, _ = self._sent
        wrong = (tokens != drafted).long()
        before = wrong.cumsum(0) - wrong
        return before == before[starts]

    def last(self, kept: Tensor) -> Tensor:
        """The last kept position of each row, int64 [rows], on the device."""
        firsts = self._sent[2]
        upto = torch.cat([kept.long().cumsum(0), firsts.new_zeros(1)])
        ends = torch.cat([firsts[1:], firsts.new_full((1,), len(kept))])
        return firsts + upto[ends - 1] - upto[firsts - 1] - 1  # firsts[0] - 1 is -1, the zero at the end

    def before(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The drafted tokens before each of the positions ``index``: places in ``index``, and the tokens, which the
        host must know."""
        counts = self.places[index]
        ends = np.cumsum(counts)
        which = np.repeat(np.arange(len(index)), counts)
        offsets = np.arange(len(which)) - np.repeat(ends - counts, counts)
        return which, self.drafted[np.repeat(self._starts[index], counts) + offsets]

    def shifted(self, ends: Tensor, index: np.ndarray) -> Tensor:
        """``ends`` int64 [m, width], the known ends of the rows at the positions ``index``: the same with the
        drafted tokens before each position behind them, cut to the last ``width``."""
        shape, most = ends.shape, int(self.places.max())
        behind = np.full((len(index), most), NONE, np.int64)
        which, tokens = self.before(index)
        counts = self.places[index]
        behind[which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)] = tokens
        columns = counts[:, None] + np.arange(shape[1])
        sent = upload((behind.reshape(-1), columns.reshape(-1)), self.device)
        return torch.cat([ends, sent[0].view(behind.shape)], dim=1).gather(1, sent[1].view(shape))


def gather_results(
    drafts: Drafts, tokens: np.ndarray, kept: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, dict[int, list[int]]]:
    """Each row's last kept token int64 [rows], and the right drafted tokens before it by ``index``, where there
    are any. ``tokens`` int64 [n] and ``kept`` bool [n] are those of the positions."""
    counts = np.add.reduceat(kept, drafts.firsts, dtype=np.int64)
    lasts = drafts.firsts + counts - 1
    accepted = {
        int(index[row]): tokens[drafts.firsts[row] : lasts[row]].tolist() for row in np.flatnonzero(counts > 1)
    }
    return tokens[lasts], accepted
