"""Tokenizers against transformers: the same files, the same ids and the same text."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from octavo.engine.tokenizer import NoTokenizerError, Tokenizer, load_tokenizer
from octavo.errors import CheckpointError, ConfigError, RequestError
from octavo.loading.gguf_reader import GgufFile
from octavo.loading.gguf_tokenizer import gguf_tokenizer
from octavo.loading.profile import read_profile
from octavo.loading.tokenizer_files import byte_alphabet
from octavo.testing.tiny import CHAT_TEMPLATE, tiny_llama, tiny_tokenizer

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "   leading and trailing   ",
    "tabs\t\tand\nnew\n\n\nlines\r\n",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n",
    "The year 2024 had 366 days; π ≈ 3.14159, 1,000,000.",
    "don't I'LL we've they're it's O'Neil",
    "Grüße aus Köln, naïve café, Ünïcödé",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "🦊 emoji 👩‍👩‍👧‍👦 family 🏳️‍🌈 flags 🇩🇪",
    "مرحبا بالعالم שלום עולם नमस्ते",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>b <|im_start|> c<|endoftext|>",
    "zero\u200bwidth\u00a0nbsp\u2028line\u3000ideographic",
    "a" * 300 + " " * 40 + "!" * 50,
    '{"key": [1, 2.5, null], "nested": {"a": true}}',
    "\x00\x01\x7f\ufffd",
]
# White space before a digit, more than one or before a digit beyond 0-9: see the tests of SmolLM2's digits.
SPACED_DIGITS = ["x  1", "List:\n\n1. one\n\n2. two", "    42", "a\t\t9", "| a |   3 |", "½ ² Ⅷ  ①"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tokenizer") / "m", layers=1, vocab=600)


def load(folder: Path, **how: Any) -> Tokenizer:
    return load_tokenizer(read_profile(str(folder)), **how)


def trained(texts: list[str], **model: Any) -> Backend:
    """A real little BPE with merges of its own."""
    backend = Backend(models.BPE(**model))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts * 3, trainer)
    return backend


def assert_same(ours: Tokenizer, theirs: Any, texts: list[str] = TEXTS) -> None:
    for text in texts:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, False) == ids, text
        assert ours.encode(text) == theirs(text).input_ids, text
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False), text
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_tokenizer_json(folder: Path) -> None:
    ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
    assert_same(ours, theirs, TEXTS + SPACED_DIGITS)
    assert ours.vocab_size == len(theirs)
    assert ours.special_ids == set(theirs.all_special_ids)
    assert (ours.eos_ids, ours.bos_id) == ((2,), theirs.bos_token_id)


def test_begin_of_text_from_a_post_processor(folder: Path, tmp_path: Path) -> None:
    """As in Llama 3: tokenizer.json itself puts the token there."""
    backend = trained(TEXTS)
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", bos_token="<|im_start|>")
    ours = load(folder, path=str(tmp_path))
    assert ours.encode("x")[0] == 1
    assert ours.encode("x", add_special_tokens=False)[0] != 1
    assert_same(ours, AutoTokenizer.from_pretrained(tmp_path))


def write(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values))


def test_begin_of_text_from_the_settings(folder: Path, tmp_path: Path) -> None:
    trained(TEXTS).save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", bos_token="<|im_start|>", eos_token="<|im_end|>", add_bos_token=True)
    ours = load(folder, path=str(tmp_path / "tokenizer.json"))
    assert ours.encode("x")[0] == 1
    assert ours.encode("x")[-1] != 2


def test_padding_and_truncation_in_the_file_are_not_taken(folder: Path, tmp_path: Path) -> None:
    backend = trained(TEXTS)
    backend.enable_padding(length=50)
    backend.enable_truncation(5)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = load(folder, path=str(tmp_path))
    assert ours.decode(ours.encode(TEXTS[6])) == TEXTS[6]


def test_special_tokens_that_only_the_settings_know(folder: Path, tmp_path: Path) -> None:
    trained(TEXTS).save(str(tmp_path / "tokenizer.json"))
    write(
        tmp_path / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token={"__type": "AddedToken", "content": "<|eot|>", "lstrip": False},
        added_tokens_decoder={
            "420": {"content": "<|eot|>", "special": True},
            "421": {"content": "<think>", "special": False},
        },
    )
    ours, theirs = load(folder, path=str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    text = "a<|eot|><think>b"
    assert ours.encode(text, False) == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ours.encode(text), skip_special_tokens=True) == "a<think>b"
    assert ours.special_tokens["eos_token"] == "<|eot|>"


def test_token_bytes_make_up_the_text(folder: Path) -> None:
    ours = load(folder)
    for text in TEXTS:
        ids = ours.encode(text, False)
        assert b"".join(ours.token_bytes(token) for token in ids) == text.encode(), text
    assert ours.token_bytes(2) == b"<|im_end|>"
    assert ours.token_bytes(10**6) == b""
    byte = ours.id_of({number: char for char, number in byte_alphabet().items()}[0xE2])
    assert byte is not None
    assert ours.token_bytes(byte) == b"\xe2"
    assert ours.token_text(byte) == "\ufffd"


def test_the_byte_alphabet_is_the_librarys() -> None:
    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for code in range(0x80):
        assert alphabet[level.pre_tokenize_str(chr(code))[0][0]] == code
    for code in (0xE9, 0x20AC, 0x1F98A):
        pieces = level.pre_tokenize_str(chr(code))
        assert bytes(alphabet[char] for char in pieces[0][0]) == chr(code).encode()


def test_half_a_surrogate_pair_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        load(folder).encode("a\ud800b")


def test_ids_that_the_model_lacks_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path, vocab=700)
    ours = load(folder, path=str(tmp_path))
    piece = ours.id_to_piece(650)
    assert piece is not None
    with pytest.raises(RequestError, match="the model does not have"):
        ours.encode(piece, False)
    assert ours.encode("\n", False)


def test_many_threads_at_once(folder: Path) -> None:
    ours = load(folder)
    expected = [ours.encode(text) for text in TEXTS]
    failed: list[str] = []

    def work() -> None:
        for _ in range(20):
            for text, ids in zip(TEXTS, expected, strict=True):
                if ours.encode(text) != ids or ours.decode(ids) != text or ours.token_bytes(5) == b"":
                    failed.append(text)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# Chat templates in files.


def test_where_templates_are_found(folder: Path, tmp_path: Path) -> None:
    assert load(folder).chat_template() == CHAT_TEMPLATE
    tiny_tokenizer(tmp_path)
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    write(tmp_path / "tokenizer_config.json", chat_template=named)
    ours = load(folder, path=str(tmp_path))
    assert (ours.chat_template(), ours.chat_template(tools=True)) == ("D", "T")
    write(tmp_path / "chat_template.json", chat_template="J")
    assert load(folder, path=str(tmp_path)).chat_template() == "J"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert load(folder, path=str(tmp_path)).chat_template() == "F"
    (tmp_path / "mine.jinja").write_text("M{{ messages|length }}")
    ours = load(folder, path=str(tmp_path), chat_template=str(tmp_path / "mine.jinja"))
    assert ours.chat_template(tools=True) == "M{{ messages|length }}"
    assert ours.render_chat([{"role": "user", "content": "x"}]) == "M1"


def test_no_template_and_bad_templates(folder: Path, tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    ours = load(folder, path=str(tmp_path))
    assert ours.has_chat_template is False
    with pytest.raises(RequestError, match="no chat template"):
        ours.render_chat([{"role": "user", "content": "x"}])
    with pytest.raises(ConfigError, match=r"absent\.jinja"):
        load(folder, chat_template=str(tmp_path / "absent.jinja"))
    (tmp_path / "bad.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match=r"bad\.jinja.*line 1"):
        load(folder, chat_template=str(tmp_path / "bad.jinja"))


# Other sources.


def test_folders_without_tokenizer_json_go_through_transformers(folder: Path, tmp_path: Path) -> None:
    model = json.loads(trained(TEXTS).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n"
    )
    write(tmp_path / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", chat_template="x")
    ours = load(folder, path=str(tmp_path))
    assert_same(ours, AutoTokenizer.from_pretrained(tmp_path))
    assert ours.chat_template() == "x"


def test_missing_and_damaged_tokenizers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load(folder, path=str(tmp_path / "absent"))
    profile = read_profile(str(folder))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(NoTokenizerError, match=r"model\.tokenizer"):
        load_tokenizer(profile, str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(profile, str(tmp_path))


# GGUF.


def gguf_of(backend: Backend, kind: str, **more: Any) -> GgufFile:
    """The metadata that a converter would write for a byte-level tokenizer."""
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    meta = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }
    return GgufFile(path=Path("m.gguf"), metadata=meta, tensors={})


def write_gguf(file: GgufFile, path: Path) -> Path:
    """Only the metadata: transformers reads tokenizers from it all the same."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in file.metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    for add, number in (
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 32),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 64),
        (writer.add_head_count, 2),
        (writer.add_head_count_kv, 2),
    ):
        add(number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def from_gguf(file: GgufFile) -> Tokenizer:
    parts = gguf_tokenizer(file)
    return Tokenizer(
        parts.backend,
        eos_ids=(),
        special_tokens=parts.special_tokens,
        chat_templates=parts.chat_templates,
        max_ids=10**6,
    )


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "qwen2", "tekken", "dbrx"])
def test_byte_level_kinds_equal_transformers(tmp_path: Path, kind: str) -> None:
    file = gguf_of(trained(TEXTS), kind, **{"tokenizer.ggml.add_bos_token": True})
    ours = from_gguf(file)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=write_gguf(file, tmp_path / "m.gguf").name)
    texts = [text for text in TEXTS if kind in ("gpt-2", "qwen2", "dbrx") or not splits_differ(ours, theirs, text)]
    assert len(texts) >= len(TEXTS) - 3
    assert_same(ours, theirs, texts + SPACED_DIGITS)
    assert ours.encode("x")[0] == 1


def splits_differ(ours: Tokenizer, theirs: Any, text: str) -> bool:
    """Whether a whole piece is a token, which kinds with ``ignore_merges`` keep and transformers merges anew."""
    pieces = [piece for piece, _ in ours.backend.pre_tokenizer.pre_tokenize_str(text)]
    merged = theirs.backend_tokenizer.model
    return any(ours.id_of(piece) is not None and len(merged.tokenize(piece)) > 1 for piece in pieces)


def test_llama_3_adds_begin_of_text_by_itself() -> None:
    assert from_gguf(gguf_of(trained(TEXTS), "llama-bpe")).encode("x")[0] == 1
    assert from_gguf(gguf_of(trained(TEXTS), "gpt-2")).encode("x")[0] != 1
    with_end = from_gguf(gguf_of(trained(TEXTS), "gpt-2", **{"tokenizer.ggml.add_eos_token": True}))
    assert with_end.encode("x")[-1] == 2


def test_whole_pieces_that_are_tokens_stay_whole() -> None:
    """Llama 3's vocabulary has words that its merges don't lead to."""
    backend = trained(TEXTS)
    size = backend.get_vocab_size()
    model = json.loads(backend.to_str())["model"]
    model["vocab"]["xyzzy"] = size
    whole = Backend(models.BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]))
    assert from_gguf(gguf_of(whole, "llama-bpe")).encode("xyzzy", False) == [size]
    assert len(from_gguf(gguf_of(whole, "gpt-2")).encode("xyzzy", False)) > 1


def test_user_defined_tokens_are_found_whole() -> None:
    file = gguf_of(trained(TEXTS), "gpt-2")
    tokens, kinds = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
    tokens.append("<think>")
    kinds.append(4)
    ours = from_gguf(file)
    ids = ours.encode("a<think>b", False)
    assert len(tokens) - 1 in ids
    assert ours.decode(ids, skip_special_tokens=True) == "a<think>b"
    assert ours.token_bytes(len(tokens) - 1) == b"<think>"


def test_gguf_templates_and_special_tokens() -> None:
    more = {
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "T",
        "tokenizer.ggml.unknown_token_id": 0,
    }
    ours = from_gguf(gguf_of(trained(TEXTS), "gpt-2", **more))
    assert (ours.chat_template(), ours.chat_template(tools=True)) == ("D", "T")
    assert ours.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    assert ours.eos_ids == (2,)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizer.ggml.pre", "qwen3", "Did you mean 'qwen2'"),
        ("tokenizer.ggml.model", "bert", "gpt2, llama"),
        ("tokenizer.ggml.tokens", [], "carries no tokenizer"),
        ("tokenizer.ggml.bos_token_id", 10**6, "bos_token_id"),
    ],
)
def test_gguf_tokenizers_that_can_not_be_rebuilt(key: str, value: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        gguf_tokenizer(gguf_of(trained(TEXTS), "gpt-2", **{key: value}))


def sentencepiece_file(prefix: bool = True) -> GgufFile:
    """A SentencePiece vocabulary: scores are the order of merging, bytes have tokens of their own."""
    backend = Backend(models.BPE(byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, max_token_length=8)
    backend.train_from_iterator([text for text in TEXTS if text.isascii()] * 3, trainer)
    learned = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    return GgufFile(
        path=Path("m.gguf"),
        metadata={
            "general.architecture": "llama",
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * 259 + [-float(number) for number in range(len(learned))],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(learned),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_space_prefix": prefix,
            "tokenizer.ggml.add_bos_token": True,
        },
        tensors={},
    )


def test_sentencepiece_equals_transformers(tmp_path: Path) -> None:
    file = sentencepiece_file()
    ours = from_gguf(file)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=write_gguf(file, tmp_path / "m.gguf").name)
    assert_same(ours, theirs, [text for text in TEXTS if "<|" not in text])
    assert ours.encode("Hello </s>")[0] == 1
    assert ours.encode("Hello</s>")[-1] == 2


def test_sentencepiece_bytes_and_prefix() -> None:
    ours = from_gguf(sentencepiece_file())
    ids = ours.encode("é🦊 a", False)
    assert b"".join(ours.token_bytes(token) for token in ids) == " é🦊 a".encode()
    assert ours.decode(ids) == "é🦊 a"
    bare = from_gguf(sentencepiece_file(prefix=False))
    assert b"".join(bare.token_bytes(token) for token in bare.encode("a b", False)) == b"a b"
    assert bare.decode(bare.encode(" a", False)) == " a"


@pytest.mark.model
def test_smollm2(tmp_path: Path) -> None:
    ours = load_tokenizer(read_profile("bundled:smollm2-135m-instruct"))
    assert ours.vocab_size == 49152
    assert ours.eos_ids == (2,)
    assert ours.token_text(2) == "<|im_end|>"
    assert ours.special_ids == frozenset(range(17))
    for text in TEXTS + SPACED_DIGITS:
        ids = ours.encode(text)
        assert ours.decode(ids) == text
        assert b"".join(ours.token_bytes(token) for token in ids) == text.encode()
    text = ours.render_chat([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert ours.encode(text, add_special_tokens=False)[0] == 1


@pytest.mark.model
def test_smollm2_was_trained_with_every_digit_alone() -> None:
    """What the ``smollm`` cut stands on: of 49,152 tokens none holds a digit but the ten digits themselves."""
    ours = load_tokenizer(read_profile("bundled:smollm2-135m-instruct"))
    texts = [ours.token_text(number) for number in range(17, 49152)]
    assert {text for text in texts if any("0" <= char <= "9" for char in text)} == set("0123456789")
    assert [ours.token_text(token) for token in ours.encode("a\n\n12  3")] == ["a", "\n\n", "1", "2", "  ", "3"]


@pytest.mark.slow
@pytest.mark.model
def test_smollm2_equals_transformers() -> None:
    """Transformers leaves out the rule of ``smollm`` files that every digit stands alone.

    It shows only in some white space before digits. There the oracle is transformers' tokenizer with the
    pre-tokenizer of the published tokenizer.json.
    """
    path = Path(read_profile("bundled:smollm2-135m-instruct").path)
    ours = load_tokenizer(read_profile("bundled:smollm2-135m-instruct"))
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert_same(ours, theirs)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Qué tal? 你好"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.render_chat(messages) == rendered
    assert ours.encode(rendered, False) == theirs(rendered, add_special_tokens=False).input_ids
    published = PreTrainedTokenizerFast(tokenizer_object=theirs.backend_tokenizer)
    published.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in TEXTS + SPACED_DIGITS:
        assert ours.encode(text) == published(text).input_ids, text


def test_added_tokens_keep_their_flags(folder: Path, tmp_path: Path) -> None:
    backend = trained(TEXTS)
    backend.add_tokens([AddedToken("<tool>", lstrip=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = load(folder, path=str(tmp_path))
    assert ours.decode(ours.encode("a   <tool>")) == "a<tool>"
