"""Incremental text against the tokenizer's own decoding of everything at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from octavo.engine.detokenize import Detokenizer

BROKEN = "\ufffd"
texts = st.text(st.sampled_from("ab é€😀ẅ中\n"), min_size=1, max_size=60)


class Decoder:
    def __init__(self, backend, special=()):
        self.backend = backend
        self.special_ids = frozenset(special)
        self.calls = 0
        self.decoded = 0

    def encode(self, text):
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids, skip_special_tokens=False):
        self.calls += 1
        self.decoded += len(ids)
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


def byte_level():
    """GPT-2's kind: a token is any piece of bytes, here one or two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    vocab |= {"ðŁ": 256, "ĠÃ": 257}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("ð", "Ł"), ("Ġ", "Ã")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    return Decoder(backend, [backend.token_to_id("<end>")])


def sentence_piece():
    """Llama 2's kind: words begin with a visible space, unknown characters fall back to bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"ab▁\n", "▁a", "▁b", "▁ab"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b"), ("▁a", "b")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Decoder(backend)


BYTE_LEVEL, SENTENCE_PIECE = byte_level(), sentence_piece()
KINDS = st.sampled_from([BYTE_LEVEL, SENTENCE_PIECE])


def stream(decoder, prompt, answer, skip=True):
    detokenizer = Detokenizer(decoder, prompt, skip)
    pieces = [detokenizer.push(token) for token in answer]
    return [*pieces, detokenizer.flush()]


def at_once(decoder, prompt, answer, skip=True):
    """The text that the answer adds to the prompt's."""
    before, after = decoder.decode(prompt, skip), decoder.decode([*prompt, *answer], skip)
    while not after.startswith(before):  # the answer completes the prompt's last character
        before = before[:-1]
    return after[len(before) :]


@given(KINDS, texts, texts)
def test_text_comes_out_whole(decoder, prompt, answer):
    prompt_ids, ids = decoder.encode(prompt), decoder.encode(answer)
    pieces = stream(decoder, prompt_ids, ids)
    assert "".join(pieces) == at_once(decoder, prompt_ids, ids)
    assert not any(BROKEN in piece for piece in pieces)


@given(st.lists(st.integers(0, 258), max_size=60), st.integers(0, 60), st.booleans())
def test_any_bytes_come_out_as_decoded_at_once(ids, cut, skip):
    prompt, answer = ids[:cut], ids[cut:]
    assert "".join(stream(BYTE_LEVEL, prompt, answer, skip)) == at_once(BYTE_LEVEL, prompt, answer, skip)


@given(texts, st.integers(1, 3))
def test_text_that_ends_in_half_a_character_is_flushed_broken(text, missing):
    ids = BYTE_LEVEL.encode(text + "😀")[:-missing]
    pieces = stream(BYTE_LEVEL, [], ids)
    assert BROKEN not in "".join(pieces[:-1])
    assert pieces[-1].endswith(BROKEN) == (BYTE_LEVEL.decode(ids).endswith(BROKEN))


@pytest.mark.parametrize("decoder", [BYTE_LEVEL, SENTENCE_PIECE], ids=["byte-level", "sentence-piece"])
def test_real_replacement_characters_are_kept(decoder):
    assert "".join(stream(decoder, [], decoder.encode(f"a{BROKEN}b{BROKEN}"))) == f"a{BROKEN}b{BROKEN}"


def test_first_word_keeps_its_space():
    """A decoder drops the space before the first word; the answer's first word is not the first."""
    word = SENTENCE_PIECE.encode("ab")
    assert "".join(stream(SENTENCE_PIECE, word, word)) == " ab"


def test_prompt_that_ends_inside_a_character():
    ids = BYTE_LEVEL.encode("a😀b")
    assert "".join(stream(BYTE_LEVEL, ids[:3], ids[3:])) == "😀b"


def test_special_tokens():
    end = next(iter(BYTE_LEVEL.special_ids))
    ids = [*BYTE_LEVEL.encode("a"), end, *BYTE_LEVEL.encode("b")]
    assert "".join(stream(BYTE_LEVEL, [], ids, skip=True)) == "ab"
    assert "".join(stream(BYTE_LEVEL, [], ids, skip=False)) == "a<end>b"


@pytest.mark.parametrize("answer", ["a" * 3000, "é😀" * 400], ids=["plain", "split characters"])
def test_work_is_constant_for_each_token(answer):
    decoder = byte_level()
    ids = decoder.encode(answer)
    stream(decoder, [], ids)
    assert decoder.decoded <= 24 * len(ids)


def test_garbage_is_shown_and_costs_no_more():
    """Bytes that never become a character."""
    decoder = byte_level()
    lead = decoder.encode("😀")[:1]
    pieces = stream(decoder, [], lead * 2000)
    assert "".join(pieces) == decoder.decode(lead * 2000)
    assert decoder.decoded <= 60 * 2000
