"""Who runs, who waits, and who holds which row and blocks. Moves requests; decides nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from heapq import heappop, heappush

from octavo.cache.blocks import BlockPool, EngineInvariantError
from octavo.contracts.api import EngineStats
from octavo.scheduling.adapters import AdapterSlots
from octavo.scheduling.audit import audit
from octavo.scheduling.request import Request, insert, remove


@dataclass(slots=True)
class Counters:
    """Counted from the start; names as in :class:`octavo.contracts.api.EngineStats`."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0


class Ledger:
    """Requests in two lines, both in order of arrival, with their rows and blocks.

    A request enters once and leaves once; whatever it held is given back exactly once.
    """

    __slots__ = (
        "_block_size",
        "_caching",
        "_max_sequences",
        "_requests",
        "adapters",
        "counters",
        "ends",
        "free_rows",
        "pool",
        "running",
        "waiting",
    )

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        max_sequences: int,
        prefix_caching: bool,
        adapters: AdapterSlots | None = None,
    ) -> None:
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.pool = pool
        self.adapters = AdapterSlots() if adapters is None else adapters
        self.free_rows = list(range(max_sequences))  # a heap: the lowest row is taken first
        self.ends: list[int] = []  # rows given back since the last plan
        self.counters = Counters()
        self._requests: dict[int, Request] = {}
        self._block_size = block_size
        self._max_sequences = max_sequences
        self._caching = prefix_caching

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, request_id: int) -> Request | None:
        """The unfinished request with this id."""
        return self._requests.get(request_id)

    def enter(self, request: Request) -> None:
        """A new request waits."""
        if request.id in self._requests:
            raise EngineInvariantError(f"Request id {request.id} is in use.")
        self._requests[request.id] = request
        self.adapters.enter(request.adapter_key)
        insert(self.waiting, request)

    def match(self, request: Request) -> list[int]:
        """Published blocks that ``request`` can start behind, so that one token at least is left to compute."""
        if not self._caching or request.params.prompt_logprobs is not None or request.pooling == "mean":
            return []  # prompt log-probabilities and means come from computing every position
        count = (request.known - 1) // self._block_size
        return self.pool.match(request.block_hashes(count, self._block_size)[:count])

    def seat(self, request: Request, hits: list[int], tokens: int) -> None:
        """A waiting request runs: it gets a row, the blocks ``hits``, and fresh ones up to ``tokens`` tokens."""
        self.pool.acquire(hits)
        request.blocks = hits + self.pool.allocate(self.blocks_for(tokens) - len(hits))
        request.row = heappop(self.free_rows)
        request.adapter_slot = self.adapters.acquire(request.adapter_key)
        request.computed = len(hits) * self._block_size
        request.published = len(hits)
        remove(self.waiting, request)
        insert(self.running, request)
        if self._caching:
            self.counters.prefix_queries += request.known
            self.counters.prefix_hits += request.computed
        if not request.preemptions:
            request.cached_tokens = request.computed
            self.counters.prompt_tokens += request.prompt_length

    def publish(self, request: Request) -> None:
        """Publish blocks that are full of tokens which the host knows and which are computed, or about to be."""
        if not self._caching:
            return
        full = min(request.computed, request.known - request.pending) // self._block_size
        hashes = request.block_hashes(full, self._block_size)
        for index in range(request.published, full):
            self.pool.publish(request.blocks[index], hashes[index])
        request.published = full

    def trim(self, request: Request, ahead: int) -> None:
        """Give back blocks behind the computed tokens and ``ahead`` more: their drafts were wrong. Nothing in them
        was published."""
        request.ahead = max(0, min(ahead, len(request.blocks) * self._block_size - request.computed))
        keep = self.blocks_for(request.computed + request.ahead)
        if len(request.blocks) > keep:
            self.pool.release(request.blocks[keep:])
            del request.blocks[keep:]

    def preempt(self, request: Request) -> None:
        """A running request waits again. Its tokens stay, their keys and values go."""
        self._give_back(request)
        remove(self.running, request)
        insert(self.waiting, request)
        request.preemptions += 1
        self.counters.preemptions += 1

    def finish(self, request: Request, reason: str) -> None:
        """The request leaves, wherever it is."""
        request.finish_reason = reason
        del self._requests[request.id]
        if request.row < 0:
            remove(self.waiting, request)
        else:
            remove(self.running, request)
            self._give_back(request)
        self.adapters.leave(request.adapter_key)

    def _give_back(self, request: Request) -> None:
        self.pool.release(request.blocks)
        heappush(self.free_rows, request.row)
        self.ends.append(request.row)
        request.row = -1
        self.adapters.release(request.adapter_key)
        request.blocks = []
        request.drafts = []
        request.computed = request.published = request.guessed = request.ahead = 0

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` tokens."""
        return -(-tokens // self._block_size)

    def stats(self) -> EngineStats:
        """Figures as of now."""
        return EngineStats(
            running=len(self.running),
            waiting=len(self.waiting),
            total_blocks=self.pool.total,
            used_blocks=self.pool.total - self.pool.free_count,
            cached_blocks=self.pool.cached_count,
            **asdict(self.counters),
        )

    def check(self) -> None:
        """Raises :class:`EngineInvariantError` naming the request or block whose books don't balance."""
        if self._requests != {request.id: request for request in (*self.running, *self.waiting)}:
            raise EngineInvariantError("The requests known by id are not those that run or wait.")
        running = Counter(request.adapter_key for request in self.running if request.adapter_key)
        waiting = Counter(request.adapter_key for request in self.waiting if request.adapter_key)
        self.adapters.check(running, running + waiting)
        audit(self.running, self.waiting, self.free_rows, self._max_sequences, self._block_size, self.pool)
