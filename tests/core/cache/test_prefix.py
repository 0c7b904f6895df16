from __future__ import annotations

import hashlib
import itertools
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cache.prefix import extend, root_hash


def test_every_field_of_the_root_counts():
    fields = ("weights", "float32", "adapter", "salt")
    roots = {root_hash(*fields)}
    for index in range(4):
        changed = list(fields)
        changed[index] += "x"
        roots.add(root_hash(*changed))
    assert len(roots) == 5


def test_no_two_divisions_of_the_same_text_collide():
    text = "abcd"
    cuts = itertools.combinations_with_replacement(range(len(text) + 1), 3)
    fields = [(text[:i], text[i:j], text[j:k], text[k:]) for i, j, k in cuts]
    assert len({root_hash(*parts) for parts in fields}) == len(set(fields)) == len(fields)


def test_none_is_not_the_empty_string():
    answers = {root_hash("m", "t", adapter, salt) for adapter in (None, "") for salt in (None, "")}
    assert len(answers) == 4


def test_a_lone_surrogate_in_a_salt_is_hashed_like_any_text():
    assert root_hash("m", "t", None, "\ud800") != root_hash("m", "t", None, "\ud801")


def test_extend_is_sha256_over_parent_and_little_endian_words():
    parent = bytes(range(32))
    tokens = [0, 1, 255, 256, 2**31, 2**32 - 1]
    assert extend(parent, tokens) == hashlib.sha256(parent + struct.pack("<6I", *tokens)).digest()


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3), min_size=2, max_size=6))
def test_chains_are_equal_only_for_equal_tokens(chains):
    seen: dict[bytes, tuple[tuple[int, ...], ...]] = {}
    for length in range(1, len(chains) + 1):
        for first in range(len(chains) - length + 1):
            blocks = tuple(tuple(tokens) for tokens in chains[first : first + length])
            digest = root_hash("m", "t", None, None)
            for tokens in blocks:
                digest = extend(digest, tokens)
            assert seen.setdefault(digest, blocks) == blocks


@pytest.mark.parametrize("token", [-1, 2**32])
def test_ids_that_are_no_token_ids_are_refused(token):
    with pytest.raises(OverflowError):
        extend(bytes(32), [token])


def test_hashes_are_the_same_in_every_process():
    code = "from octavo.cache.prefix import *; print(extend(root_hash('m', 't', 'a', 's'), [1, 2, 3]).hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == extend(root_hash("m", "t", "a", "s"), [1, 2, 3]).hex()
