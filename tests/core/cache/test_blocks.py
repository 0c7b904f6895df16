from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.cache.blocks import BlockPool, EngineInvariantError


def test_block_zero_is_never_handed_out_and_the_rest_is():
    pool = BlockPool(5)
    assert pool.total == 4
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.free_count == 0


def test_a_pool_needs_a_block_beside_the_reserved_one():
    with pytest.raises(ValueError, match="at least 2 blocks"):
        BlockPool(1)


def test_allocating_more_than_is_free_is_refused_and_changes_nothing():
    pool = BlockPool(4)
    pool.allocate(1)
    with pytest.raises(EngineInvariantError, match="3 blocks are allocated, but only 2 are free"):
        pool.allocate(3)
    assert pool.free_count == 2


def test_match_finds_the_longest_published_prefix():
    pool = BlockPool(5)
    blocks = pool.allocate(3)
    for block, digest in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.publish(block, digest)
    assert pool.match([b"a", b"b", b"x", b"c"]) == blocks[:2]
    assert pool.match([b"x", b"a"]) == []


def test_released_prefixes_are_evicted_end_first_and_lose_their_hash():
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    for block, digest in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.publish(block, digest)
    pool.release(blocks)
    assert pool.cached_count == 3
    assert pool.free_count == 3
    assert pool.allocate(1) == [blocks[2]]
    assert pool.match([b"a", b"b", b"c"]) == blocks[:2]
    assert pool.hash_of(blocks[2]) is None


def test_blank_blocks_go_before_cached_ones_and_the_oldest_cached_one_first():
    pool = BlockPool(5)
    old, new, plain = pool.allocate(1), pool.allocate(1), pool.allocate(1)
    pool.publish(old[0], b"old")
    pool.publish(new[0], b"new")
    for table in (old, new, plain):
        pool.release(table)
    assert set(pool.allocate(2)) == {plain[0], 4}
    assert pool.allocate(1) == old
    assert pool.match([b"new"]) == new


def test_using_a_cached_block_makes_it_recent():
    pool = BlockPool(3)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.publish(first[0], b"first")
    pool.publish(second[0], b"second")
    pool.release(first)
    pool.release(second)
    pool.acquire(first)
    pool.release(first)
    assert pool.allocate(1) == second


def test_acquire_takes_blocks_off_the_free_ones_and_counts_references():
    pool = BlockPool(3)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], b"a")
    pool.release(blocks)
    assert pool.idle(blocks) == 1
    pool.acquire(blocks)
    pool.acquire(blocks)
    assert pool.idle(blocks) == 0
    assert pool.free_count == 1
    pool.release(blocks)
    assert pool.free_count == 1
    pool.release(blocks)
    assert pool.free_count == 2


def test_a_duplicate_hash_keeps_the_first_block():
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.publish(first, b"same")
    pool.publish(second, b"same")
    assert pool.match([b"same"]) == [first]
    assert pool.hash_of(second) is None
    pool.check([[first, second]])


def test_misuse_names_the_block():
    pool = BlockPool(4)
    (block,) = pool.allocate(1)
    pool.publish(block, b"a")
    with pytest.raises(EngineInvariantError, match=f"Block {block} is published under two hashes"):
        pool.publish(block, b"b")
    pool.release([block])
    with pytest.raises(EngineInvariantError, match=f"Block {block} is released more often"):
        pool.release([block])
    with pytest.raises(EngineInvariantError, match=f"Block {block} is published, but no request uses it"):
        pool.publish(block, b"a")
    with pytest.raises(EngineInvariantError, match="Block 3 is acquired, but it holds no published prefix"):
        pool.acquire([3])


def test_forget_withdraws_what_is_published_and_keeps_references():
    pool = BlockPool(4)
    used, cached = pool.allocate(2)
    pool.publish(used, b"used")
    pool.publish(cached, b"cached")
    pool.release([cached])
    pool.forget([b"cached", b"unknown"])
    assert pool.match([b"cached"]) == []
    assert pool.match([b"used"]) == [used]
    assert pool.cached_count == 0
    pool.check([[used]])


def test_reset_forgets_used_and_unused_prefixes():
    pool = BlockPool(4)
    used, cached = pool.allocate(2)
    pool.publish(used, b"used")
    pool.publish(cached, b"cached")
    pool.release([cached])
    pool.reset()
    assert pool.match([b"used"]) == pool.match([b"cached"]) == []
    assert pool.free_count == 2
    pool.check([[used]])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "Block 1 has 1 references, but stands in 0 block tables"),
        ([[1, 2], [2]], "Block 2 has 1 references, but stands in 2 block tables"),
        ([[1, 2, 3]], "Block 3 has 0 references, but stands in 1 block tables"),
        ([[1, 2, 1]], "Block 1 stands twice in one block table"),
        ([[0, 1, 2]], "Block 0 is reserved for padding"),
    ],
)
def test_check_names_the_wrong_block(tables, message):
    pool = BlockPool(5)
    pool.allocate(2)
    with pytest.raises(EngineInvariantError, match=message):
        pool.check(tables)


def test_check_finds_a_block_that_was_lost():
    pool = BlockPool(4)
    pool._blank.pop()
    with pytest.raises(EngineInvariantError, match="Block 1 must be in use, blank or cached"):
        pool.check([])


class PoolMachine(RuleBasedStateMachine):
    """The pool against a plain model: tables of live sequences, and for each hash the block that first had it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9)
        self.tables: list[list[int]] = []
        self.published: dict[bytes, int] = {}

    @rule(count=st.integers(1, 4))
    def allocate(self, count):
        if count > self.pool.free_count:
            return
        before = Counter(block for table in self.tables for block in table)
        blocks = self.pool.allocate(count)
        assert not any(before[block] for block in blocks)
        self.published = {digest: block for digest, block in self.published.items() if block not in blocks}
        self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), name=st.integers(0, 9))
    def publish(self, data, name):
        block = data.draw(st.sampled_from(data.draw(st.sampled_from(self.tables))))
        digest = bytes([name])
        if self.pool.hash_of(block) in (None, digest):
            self.pool.publish(block, digest)
            self.published.setdefault(digest, block)

    @rule(names=st.lists(st.integers(0, 9), max_size=4, unique=True))
    def share(self, names):
        hashes = [bytes([name]) for name in names]
        found = self.pool.match(hashes)
        expected = []
        for digest in hashes:
            if digest not in self.published:
                break
            expected.append(self.published[digest])
        assert found == expected
        self.pool.acquire(found)
        if found:
            self.tables.append(found)

    @rule(names=st.lists(st.integers(0, 9), max_size=3))
    def forget(self, names):
        for name in names:
            self.published.pop(bytes([name]), None)
        self.pool.forget(bytes([name]) for name in names)

    @rule()
    def reset(self):
        self.pool.reset()
        self.published.clear()

    @invariant()
    def books_balance(self):
        self.pool.check(self.tables)
        used = {block for table in self.tables for block in table}
        assert self.pool.free_count == self.pool.total - len(used)
        assert self.pool.cached_count == len(set(self.published.values()) - used)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
