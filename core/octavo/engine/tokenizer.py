"""Text to token ids and back, over the ``tokenizers`` library; transformers is imported only as a last resort."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from octavo.engine.chat_template import check_template, render_chat
from octavo.errors import ConfigError, RequestError
from octavo.loading.profile import locate
from octavo.loading.tokenizer_files import NoTokenizerError, byte_alphabet, read_tokenizer
from octavo.records import ModelProfile

__all__ = ["NoTokenizerError", "Tokenizer", "load_tokenizer"]

_SPACE = "\u2581"  # how SentencePiece writes a space


class Tokenizer:
    """Encodes and decodes. Any number of threads may use one at a time: nothing in it changes.

    ``vocab_size`` counts all tokens, added ones too; ``special_ids`` are left out by ``skip_special_tokens``;
    ``eos_ids`` end an answer; ``special_tokens`` are texts by role, such as ``bos_token``.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Iterable[int],
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
        max_ids: int,
    ) -> None:
        self.backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.special_tokens = dict(special_tokens)
        self._templates = dict(chat_templates)
        added = backend.get_added_tokens_decoder()
        self._added = {number: token.content for number, token in added.items()}
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        end = self.id_of(special_tokens.get("eos_token", ""))
        self.eos_ids = tuple(eos_ids) or (() if end is None else (end,))
        self.bos_id = self.id_of(special_tokens.get("bos_token", ""))
        # Some tokenizers know more tokens than their model has embeddings for.
        self._max_ids = max_ids if max_ids < self.vocab_size else None
        self._to_bytes = _bytes_of_piece(backend)
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``. Special tokens written in it become their ids.

        ``add_special_tokens``: also put those around it that the model wants (begin of text …); not for text
        from a chat template, which writes its own.
        """
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:  # the library's word for text that has no UTF-8
            raise RequestError("The text is not valid Unicode: it holds half of a surrogate pair.") from error
        if self._max_ids is not None and max(ids, default=0) >= self._max_ids:
            token = next(number for number in ids if number >= self._max_ids)
            raise RequestError(f"The text holds token {self.id_to_piece(token)!r}, which the model does not have.")
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids; unfinished UTF-8 becomes U+FFFD, ids without a token become nothing."""
        text: str = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token: int) -> str:
        """One token as text, with its leading space; unfinished UTF-8 becomes U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for; they may be part of a character. Empty for ids without a token."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._find_bytes(token)
        return found

    def id_of(self, token: str) -> int | None:
        """Id of the token spelled ``token`` in the vocabulary, such as ``<|im_end|>``."""
        number: int | None = self.backend.token_to_id(token)
        return number

    def id_to_piece(self, token: int) -> str | None:
        """The vocabulary's own spelling of a token, such as ``Ġthe``."""
        piece: str | None = self.backend.id_to_token(token)
        return piece

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`render_chat` can work."""
        return self.chat_template() is not None

    def chat_template(self, tools: bool = False) -> str | None:
        """The Jinja source; some models have another one for requests with ``tools``."""
        if tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        return self._templates.get("default")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """:func:`octavo.engine.chat_template.render_chat` with this model's template and special tokens.

        Encode the text with ``add_special_tokens=False``.
        """
        return render_chat(
            self.chat_template(tools=bool(tools)),
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            options=options,
            special_tokens=self.special_tokens,
        )

    def _find_bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self.id_to_piece(token)
        return b"" if piece is None else self._to_bytes(piece)


def load_tokenizer(profile: ModelProfile, path: str | None = None, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer at ``path`` (folder, tokenizer.json, .gguf file or ``bundled:NAME``), or else the model's own.

    ``chat_template`` is the path of a Jinja file that replaces the model's. Raises :class:`NoTokenizerError`
    where there is none, :class:`octavo.errors.CheckpointError` where it is damaged.
    """
    where = path or profile.path
    parts = read_tokenizer(_location(where))
    templates = {"default": _template_file(chat_template)} if chat_template else parts.chat_templates
    for name, template in templates.items():
        check_template(template, chat_template or f"{where} ({name})")
    return Tokenizer(
        parts.backend,
        eos_ids=profile.eos_ids,
        special_tokens=parts.special_tokens,
        chat_templates=templates,
        max_ids=profile.vocab_size,
    )


def _location(path: str) -> Path:
    given = Path(path).expanduser()
    return given if given.is_file() or (given / "tokenizer.json").is_file() else locate(path)


def _template_file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read as a Jinja template: {error}", "model.chat_template") from error


def _bytes_of_piece(backend: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """How a vocabulary entry spells bytes: by GPT-2's alphabet, SentencePiece's marks, or as plain text."""
    decoder = repr(backend.decoder)
    if "ByteLevel" in decoder:
        alphabet = byte_alphabet()
        return lambda piece: (
            bytes(alphabet[char] for char in piece) if alphabet.keys() >= set(piece) else piece.encode()
        )
    if "ByteFallback" in decoder or "Metaspace" in decoder:
        return _sentencepiece_bytes
    return str.encode


def _sentencepiece_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace(_SPACE, " ").encode()
