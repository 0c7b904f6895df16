"""The noise: the same integers as a NumPy model of the hash, and as random as the test of it can tell."""

from __future__ import annotations

import numpy as np
import torch

from octavo.ops.noise import draw, log_exponential, random_bits, row_keys, token_words

M64 = 2**64 - 1


def mix64(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M64
    return x ^ (x >> 31)


def bits_of(seed: int, position: int, word: int) -> int:
    """The hash once more, in Python's unbounded integers."""
    key = mix64(mix64(seed & M64) ^ (position * 0x9E3779B97F4A7C15 & M64))
    x = (word ^ key) & 0xFFFFFFFF
    x = x * ((key >> 32) | 1) & 0xFFFFFFFF
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16) if x < 2**31 else x ^ ((x >> 16) | 0xFFFF0000)


def keys_of(seeds: list[int], positions: list[int]) -> torch.Tensor:
    unsigned = np.array([seed & M64 for seed in seeds], np.uint64)
    return torch.from_numpy(row_keys(unsigned, np.array(positions, np.int64)))


def grid(count: int, vocab_size: int) -> torch.Tensor:
    """Bits of ``count`` rows: neighbouring seeds and positions, as in use."""
    seeds = [index // 256 for index in range(count)]
    keys = keys_of(seeds, [index % 256 for index in range(count)])
    return random_bits(torch.from_numpy(token_words(vocab_size)), keys)


def test_bits_are_those_of_exact_arithmetic() -> None:
    words = token_words(300)
    pairs = [(0, 0), (1, 0), (0, 1), (-1, 5), (2**63 - 1, 2**31), (-(2**63), 131071)]
    bits = random_bits(torch.from_numpy(words), keys_of(*map(list, zip(*pairs, strict=True))))
    for row, (seed, position) in enumerate(pairs):
        expected = [bits_of(seed, position, int(word) & 0xFFFFFFFF) for word in words]
        assert bits[row].tolist() == expected


def test_words_and_keys_do_not_collide() -> None:
    assert len(np.unique(token_words(262_144))) == 262_144
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.int64))
    keys = row_keys(seeds.ravel(), positions.ravel())
    assert len(np.unique(keys, axis=0)) == 90_000


def test_bits_are_uniform_and_each_bit_is_fair() -> None:
    bits = grid(1024, 512).numpy()
    assert bits.min() >= 0
    total = bits.size
    counts = np.bincount((bits >> 23).ravel(), minlength=256)
    chi = ((counts - total / 256) ** 2 / (total / 256)).sum()
    assert abs(chi - 255) < 5 * np.sqrt(2 * 255)
    for bit in range(31):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 5 * 0.5 / np.sqrt(total)


def test_neighbours_are_independent() -> None:
    """Neighbouring tokens, positions and seeds: no correlation of value, nor of any pair of high bits."""
    bits = grid(1024, 512).numpy().astype(np.float64) / 2**31 - 0.5
    along_tokens = (bits[:, 1:] * bits[:, :-1]).mean() * 12
    along_positions = (bits[1:] * bits[:-1]).mean() * 12
    along_seeds = (bits[256:] * bits[:-256]).mean() * 12
    for correlation in (along_tokens, along_positions, along_seeds):
        assert abs(correlation) < 5 / np.sqrt(bits.size * 0.7)
    high = (bits > 0).reshape(1024, 512)
    quads = high[:, 0::4] * 8 + high[:, 1::4] * 4 + high[:, 2::4] * 2 + high[:, 3::4]
    counts = np.bincount(quads.ravel(), minlength=16)
    expected = quads.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 5 * np.sqrt(30)


def test_every_pair_of_tokens_meets_as_equals() -> None:
    """Over many rows each token beats each other one half of the time: no two share their noise."""
    bits = grid(4096, 64).numpy()
    wins = (bits[:, :, None] < bits[:, None, :]).mean(axis=0)
    off_diagonal = wins[~np.eye(64, dtype=bool)]
    assert np.abs(off_diagonal - 0.5).max() < 6 * 0.5 / np.sqrt(4096)


def test_exponential_against_float64() -> None:
    bits = torch.cat([torch.arange(1000), 2**31 - 1 - torch.arange(1000), torch.arange(0, 2**31, 99_991)]).int()
    uniform = (bits.numpy().astype(np.float64) + 0.5) * 2.0**-31
    expected = np.log(-np.log1p(-np.minimum(uniform, 1 - 2.0**-24)))
    found = log_exponential(bits).numpy()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[uniform < 0.999], expected[uniform < 0.999], rtol=1e-4, atol=1e-4)
    assert (np.abs(found - expected) < 0.1).all()  # towards 1 float32 has few digits; such a token loses anyway


def test_exponential_distribution() -> None:
    sample = np.sort(np.exp(log_exponential(grid(512, 512)).double().numpy()).ravel())
    steps = np.arange(1, sample.size + 1) / sample.size
    assert np.abs(1 - np.exp(-sample) - steps).max() < 2.0 / np.sqrt(sample.size)


def test_rare_tokens_keep_their_share() -> None:
    """20,000 tokens of probability 1e-6 each win as often together as they should: 0.02 of the time."""
    vocab_size, rows, rounds = 20_001, 64, 150
    logits = torch.full((rows, vocab_size), float(np.log(1e-6)))
    logits[:, 0] = float(np.log(1 - 20_000e-6))
    words = torch.from_numpy(token_words(vocab_size))
    rare = 0
    for round_ in range(rounds):
        keys = keys_of([7] * rows, list(range(round_ * rows, round_ * rows + rows)))
        rare += int((draw(logits, None, words, keys)[0] != 0).sum())
    expected = rows * rounds * 0.02
    assert abs(rare - expected) < 5 * np.sqrt(expected)


def test_draw_does_not_depend_on_chunks() -> None:
    """The last digits of a logarithm must not depend on where in a tensor it is taken."""
    logits = torch.randn(40, 30_001, generator=torch.Generator().manual_seed(0))
    words = torch.from_numpy(token_words(30_001))
    keys = keys_of(list(range(40)), [9] * 40)
    one_by_one = torch.cat([draw(logits[i : i + 1], None, words, keys[i : i + 1])[0] for i in range(40)])
    assert torch.equal(draw(logits, None, words, keys)[0], one_by_one)
    noise = log_exponential(random_bits(words, keys))
    assert all(
        torch.equal(noise[i : i + 1], log_exponential(random_bits(words, keys[i : i + 1]))) for i in range(40)
    )
