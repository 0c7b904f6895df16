"""The cache room: which KV block belongs to whom, and which blocks hold a known prefix.

Only numbers are kept here; the keys and values themselves live on the device. A block is in one of three states:

* *in use*: at least one request has it in its block table;
* *cached*: no request uses it, but it holds a published prefix. Kept in least-recently-used order;
* *blank*: nobody uses it and it holds nothing worth keeping.

Blank blocks are handed out first; then cached ones are evicted, the least recently used first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class EngineInvariantError(AssertionError):
    """The engine's books do not balance: a bug in Octavo or in a plugin, never the fault of a request."""


class BlockPool:
    """Reference counts, free blocks and the prefix map. Every operation is O(1) a block.

    ``num_blocks`` counts block 0, which pads block tables and is never handed out; ``total`` does not.
    """

    __slots__ = ("_blank", "_by_hash", "_cached", "_hashes", "_references", "total")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"A pool needs at least 2 blocks (block 0 is reserved), not {num_blocks}.")
        self.total = num_blocks - 1
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, 0, -1))  # a stack; the lowest block is handed out first
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def free_count(self) -> int:
        """Blocks that ``allocate`` can hand out: blank and cached ones."""
        return len(self._blank) + len(self._cached)

    @property
    def cached_count(self) -> int:
        """Blocks that hold a published prefix and that no request uses now."""
        return len(self._cached)

    def hash_of(self, block: int) -> bytes | None:
        """The hash that ``block`` is published under, if any."""
        return self._hashes[block]

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest published prefix of ``hashes``. Takes no references."""
        found: list[int] = []
        for digest in hashes:
            block = self._by_hash.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` no request uses: acquiring them lowers ``free_count`` by that much."""
        return sum(1 for block in blocks if not self._references[block])

    def acquire(self, blocks: Iterable[int]) -> None:
        """Add a reference to published blocks, as ``match`` gave them."""
        for block in blocks:
            if not self._references[block]:
                if block not in self._cached:
                    raise EngineInvariantError(f"Block {block} is acquired, but it holds no published prefix.")
                del self._cached[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks with one reference each and unknown contents.

        Evicted blocks lose their hash. Raises :class:`EngineInvariantError` when fewer than ``count`` are free:
        the caller must look at ``free_count`` first.
        """
        if count > self.free_count:
            raise EngineInvariantError(f"{count} blocks are allocated, but only {self.free_count} are free.")
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference to each block of one block table, in the table's order.

        The last blocks are evicted first: a prefix is of use without its end, an end without its prefix is not.
        """
        for block in reversed(blocks):
            left = self._references[block] - 1
            if left < 0:
                raise EngineInvariantError(f"Block {block} is released more often than it was handed out.")
            self._references[block] = left
            if left:
                continue
            if self._hashes[block] is None:
                self._blank.append(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Let later requests find ``block``, which is in use and full. If ``digest`` is known, the first stays."""
        if not self._references[block]:
            raise EngineInvariantError(f"Block {block} is published, but no request uses it.")
        if self._hashes[block] is not None and self._hashes[block] != digest:
            raise EngineInvariantError(f"Block {block} is published under two hashes.")
        if digest not in self._by_hash:
            self._by_hash[digest] = block
            self._hashes[block] = digest

    def forget(self, hashes: Iterable[bytes]) -> None:
        """Withdraw what is published under ``hashes``, whoever uses it; unknown ones are passed over."""
        for digest in hashes:
            block = self._by_hash.pop(digest, None)
            if block is None:
                continue
            self._hashes[block] = None
            if block in self._cached:
                del self._cached[block]
                self._blank.append(block)

    def reset(self) -> None:
        """Forget every hash, of blocks in use too; block tables are untouched."""
        self.forget(list(self._by_hash))

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        digest = self._hashes[block]
        assert digest is not None
        self._hashes[block] = None
        del self._by_hash[digest]
        return block

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Compare the books with the block tables of all live requests.

        Raises :class:`EngineInvariantError` naming the first block that is wrong. O(blocks + table entries).
        """
        used: Counter[int] = Counter()
        for table in tables:
            if len(set(table)) != len(table):
                twice = next(block for block, times in Counter(table).items() if times > 1)
                raise EngineInvariantError(f"Block {twice} stands twice in one block table.")
            used.update(table)
        blank = Counter(self._blank)
        for block in range(self.total + 1):
            problem = self._problem(block, used[block], blank[block])
            if problem:
                raise EngineInvariantError(f"Block {block} {problem}.")
        published = sum(digest is not None for digest in self._hashes)
        if published != len(self._by_hash):
            raise EngineInvariantError(f"{published} blocks carry a hash; the map has {len(self._by_hash)}.")

    def _problem(self, block: int, used: int, blank: int) -> str | None:
        references, digest = self._references[block], self._hashes[block]
        cached = block in self._cached
        if block == 0:
            taken = used or blank or cached or references or digest
            return "is reserved for padding, but it was handed out or published" if taken else None
        if references != used:
            return f"has {references} references, but stands in {used} block tables"
        if bool(references) + blank + cached != 1:
            return f"must be in use, blank or cached: {references} references, {blank} times blank, {cached=}"
        if cached and digest is None:
            return "is kept as cached without a hash"
        if blank and digest is not None:
            return "is blank, but still published"
        if digest is not None and self._by_hash.get(digest) != block:
            return f"carries a hash that the map gives to block {self._by_hash.get(digest)}"
        return None
