"""The tokenizer that a GGUF file carries, rebuilt with the ``tokenizers`` library.

A file names how text is cut before merging (``tokenizer.ggml.pre``) but not the pattern; the patterns are facts
of each model's published tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from octavo.errors import CheckpointError, nearest
from octavo.loading.gguf_reader import GgufFile

_META = "tokenizer.ggml."
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6
_SPACE = "\u2581"  # how SentencePiece writes a space

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Cut:
    """How text is cut. Without a pattern, as GPT-2 does. ``digits``: every digit alone, first of all.

    ``ignore_merges``: a piece that is a token stays whole, whatever the merges say. ``bos``: prompts begin with
    the begin-of-text token unless the file says otherwise.
    """

    pattern: str | None = None
    digits: bool = False
    ignore_merges: bool = False
    bos: bool = False


_CUTS = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "olmo", "jais", "phi-2"), _Cut()),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _Cut(digits=True)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _Cut(_LLAMA3, ignore_merges=True, bos=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _Cut(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _Cut(_QWEN2)),
    "tekken": _Cut(_TEKKEN, ignore_merges=True, bos=True),
}


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What files say of a tokenizer: special tokens by role (``bos_token`` …), chat templates by name
    (``default``, ``tool_use``)."""

    backend: Tokenizer
    special_tokens: Mapping[str, str]
    chat_templates: Mapping[str, str]


def gguf_tokenizer(file: GgufFile) -> TokenizerParts:
    """Build it: byte-level BPE (``gpt2``) or SentencePiece (``llama``).

    Raises :class:`CheckpointError` when it is of a kind that is not known, or incomplete.
    """
    meta = {key.removeprefix(_META): value for key, value in file.metadata.items() if key.startswith(_META)}
    tokens = meta.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError(f"{file.path}: carries no tokenizer; set model.tokenizer to a folder that has one.")
    kind = meta.get("model")
    if kind == "gpt2":
        cut = _cut(file, str(meta.get("pre", "default")))
        backend, bos = _byte_level(tokens, meta, cut), cut.bos
    elif kind == "llama":
        backend, bos = _sentencepiece(file, tokens, meta), True
    else:
        raise _unknown(file, "model", kind, ("gpt2", "llama"))
    _add_tokens(backend, tokens, meta.get("token_type") or ())
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {role: _token(file, tokens, meta, key) for role, key in roles.items()}
    named = {role: token for role, token in special.items() if token is not None}
    add_bos, add_eos = meta.get("add_bos_token", bos), meta.get("add_eos_token", False)
    set_template_processor(
        backend, special["bos_token"] if add_bos else None, special["eos_token"] if add_eos else None
    )
    return TokenizerParts(backend, named, _templates(file.metadata))


def set_template_processor(backend: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make ``encode`` put ``bos`` before and ``eos`` after the text, where given."""
    ends = [token for token in (bos, eos) if token is not None]
    if ends:
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, (bos, "$A", eos))),
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(ends)],
        )


def _cut(file: GgufFile, name: str) -> _Cut:
    if name not in _CUTS:
        raise _unknown(file, "pre", name, tuple(_CUTS))
    return _CUTS[name]


def _unknown(file: GgufFile, key: str, value: object, known: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: {_META}{key} is {value!r}, a tokenizer that Octavo can't rebuild; known: {', '.join(known)}."
        f"{nearest(str(value), known)} Set model.tokenizer to a folder with the model's tokenizer.json."
    )


def _byte_level(tokens: Sequence[str], meta: Mapping[str, Any], cut: _Cut) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in meta.get("merges") or ()]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=cut.ignore_merges))
    first: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    if cut.pattern is not None:
        first.append(pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.pattern is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, level]) if first else level
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GgufFile, tokens: Sequence[str], meta: Mapping[str, Any]) -> Tokenizer:
    kinds, scores = meta.get("token_type"), meta.get("scores")
    if not kinds or not scores or not len(kinds) == len(scores) == len(tokens):
        raise CheckpointError(f"{file.path}: {_META}scores and {_META}token_type must be as many as the tokens.")
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(tokens, kinds, scores, vocab),
            unk_token=_token(file, tokens, meta, "unknown"),
            fuse_unk=True,
            byte_fallback=_BYTE in kinds,
        )
    )
    prefix = bool(meta.get("add_space_prefix", True))
    scheme = "first" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _merges(
    tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float], vocab: Mapping[str, int]
) -> list[tuple[str, str]]:
    """The merges that a scored vocabulary implies: every split of a token into two tokens, best score first."""
    found = []
    for token, kind, score in zip(tokens, kinds, scores, strict=True):
        if kind in (_NORMAL, _USER_DEFINED):
            splits = [(token[:at], token[at:]) for at in range(1, len(token))]
            pairs = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
            pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
            found += [(-score, -len(left), -len(right), left, right) for left, right in pairs]
    found.sort(key=lambda item: item[:3])
    return [item[3:] for item in found]


def _add_tokens(backend: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tokens that are found in text before anything is cut: control tokens, and those that users defined."""
    control = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL]
    defined = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _USER_DEFINED]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in defined])


def _token(file: GgufFile, tokens: Sequence[str], meta: Mapping[str, Any], role: str) -> str | None:
    number = meta.get(f"{role}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise CheckpointError(
            f"{file.path}: {_META}{role}_token_id is {number!r}, not one of {len(tokens)} tokens."
        )
    return tokens[number]


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """``tokenizer.chat_template`` as ``default``, ``tokenizer.chat_template.NAME`` as NAME."""
    prefix = "tokenizer.chat_template"
    return {
        key.removeprefix(prefix).removeprefix(".") or "default": value
        for key, value in metadata.items()
        if (key == prefix or key.startswith(f"{prefix}.")) and isinstance(value, str)
    }
