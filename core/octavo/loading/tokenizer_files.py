"""Tokenizer files: tokenizer.json and its companions, GGUF metadata, or whatever transformers can convert."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from octavo.errors import CheckpointError
from octavo.loading.fields import read_json_object
from octavo.loading.gguf_reader import read_gguf
from octavo.loading.gguf_tokenizer import TokenizerParts, gguf_tokenizer, set_template_processor

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# What transformers can make a tokenizer of when tokenizer.json is missing.
_CONVERTIBLE = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json", "*.tiktoken")


class NoTokenizerError(CheckpointError):
    """The model comes without a tokenizer and none was named; token ids can still be used."""


def read_tokenizer(location: Path) -> TokenizerParts:
    """The tokenizer of a folder, a tokenizer.json or a .gguf file.

    Raises :class:`NoTokenizerError` for a folder that has none, :class:`CheckpointError` for damaged files.
    """
    if location.suffix == ".gguf" and location.is_file():
        return gguf_tokenizer(read_gguf(location))
    file = location if location.is_file() else location / "tokenizer.json"
    if file.is_file():
        return _from_json(file)
    if any(next(location.glob(name), None) for name in _CONVERTIBLE):
        return _from_transformers(location)
    raise NoTokenizerError(
        f"{location}: holds no tokenizer (tokenizer.json, tokenizer.model …); name one with model.tokenizer."
    )


def byte_alphabet() -> dict[str, int]:
    """Byte-level vocabularies' spelling of bytes: 256 printable characters, each for one byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _from_json(file: Path) -> TokenizerParts:
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file}: not a tokenizer that can be read: {error}.") from error
    backend.no_padding()
    backend.no_truncation()
    settings = file.parent / "tokenizer_config.json"
    config = read_json_object(settings) if settings.is_file() else {}
    special = {role: text for role in _ROLES if (text := _content(config.get(role))) is not None}
    _add_missing(backend, config, special)
    if backend.post_processor is None:
        bos, eos = config.get("add_bos_token", False), config.get("add_eos_token", False)
        set_template_processor(
            backend, special.get("bos_token") if bos else None, special.get("eos_token") if eos else None
        )
    return TokenizerParts(backend, special, _templates(file.parent, config))


def _content(token: object) -> str | None:
    """A special token is written as its text or as an object with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _add_missing(backend: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Tokens that only tokenizer_config.json knows as added or as special."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    for token in (listed[number] for number in sorted(listed, key=int)):
        text = _content(token)
        if text is not None and text not in known:
            flags = {key: token[key] for key in ("lstrip", "rstrip", "normalized", "single_word") if key in token}
            added = AddedToken(text, special=bool(token.get("special")), **flags)
            (backend.add_special_tokens if added.special else backend.add_tokens)([added])
            known.add(text)
    backend.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in special.values() if text not in known]
    )


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; files of their own come before those in tokenizer_config.json."""
    named = config.get("chat_template")
    if isinstance(named, str):
        found = {"default": named}
    else:
        found = {entry["name"]: entry["template"] for entry in named or () if isinstance(entry, dict)}
    packed = folder / "chat_template.json"
    if packed.is_file() and isinstance(text := read_json_object(packed).get("chat_template"), str):
        found["default"] = text
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    return found | {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}


def _from_transformers(folder: Path) -> TokenizerParts:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{folder}: transformers can't read its tokenizer: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"{folder}: its tokenizer is Python code ({type(tokenizer).__name__}), which has no fast form; "
            "name a folder with a tokenizer.json in model.tokenizer."
        )
    special = {role: text for role in _ROLES if isinstance(text := getattr(tokenizer, role, None), str)}
    template = getattr(tokenizer, "chat_template", None)
    return TokenizerParts(backend, special, template if isinstance(template, dict) else _default(template))


def _default(template: str | None) -> dict[str, str]:
    return {} if template is None else {"default": template}
