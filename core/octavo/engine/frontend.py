"""The text side of an engine, in the caller's process: tokenizer, chat template, admission. Imports no torch."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from octavo.config.compose import load_launch
from octavo.config.launch import LaunchConfig
from octavo.config.reading import read_file
from octavo.contracts.api import Arrival
from octavo.contracts.lora import ServedAdapter
from octavo.engine.admission import Admission, Limits, check_token_ids
from octavo.engine.answers import Answers
from octavo.engine.embedding import checkpoint_pooling
from octavo.engine.messages import AdapterReply, LoadAdapter, Ready, Submit, UnloadAdapter
from octavo.engine.resolver import FolderResolver
from octavo.engine.tokenizer import NoTokenizerError, Tokenizer, load_tokenizer
from octavo.errors import ConfigError, NotFoundError, RequestError, nearest
from octavo.loading.profile import read_profile
from octavo.params import SamplingParams
from octavo.plugins.host import PluginHost
from octavo.records import ModelProfile

ModelArgument = str | Path | Mapping[str, Any] | None
ConfigArgument = str | Path | Mapping[str, Any] | None
_GENERATION: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
MAX_ADAPTER_NAME: Final = 256
_log = logging.getLogger("octavo.engine")


def launch(
    model: ModelArgument, config: ConfigArgument, plugins: Sequence[object], sections: Mapping[str, Any]
) -> tuple[LaunchConfig, PluginHost]:
    """What ``LLM`` and ``AsyncEngine`` are given, as one configuration.

    ``model`` is a path or the whole section; ``sections`` go over ``config``, key by key where both are mappings.
    """
    data = dict(config) if isinstance(config, Mapping) else read_file(config) if config is not None else {}
    given = dict(sections)
    if model is not None:
        given["model"] = model if isinstance(model, Mapping) else {"path": str(model)}
    for name, section in given.items():
        earlier = data.get(name)
        if isinstance(earlier, Mapping) and isinstance(section, Mapping):
            section = {**earlier, **section}
        data[name] = section
    return load_launch(data, objects=plugins)


class Frontend:
    """Made before the engine is there; ``open`` completes it with what the engine says of itself."""

    def __init__(self, config: LaunchConfig, host: PluginHost) -> None:
        self.config = config
        self.host = host
        self.profile: ModelProfile = read_profile(config.model.path, name=config.model.name)
        self.tokenizer = _tokenizer(self.profile, config)
        self.max_length = self.profile.max_length
        self.default_sampling = _default_sampling(self.profile)
        self.pooling = checkpoint_pooling(self.profile)
        self._longest_token = _longest_token(self.tokenizer)
        self._admission: Admission | None = None
        self.adapters: dict[str, ServedAdapter] = {}
        wanted = config.lora.resolver if config.lora is not None else None
        self._resolver = None if wanted is None else FolderResolver(wanted.folder)
        self._tickets = itertools.count(1)
        self._unloaded: dict[str, int] = {}  # ticket of the last unloading of a name
        self._next_id = 1
        self._labels = itertools.count(1)

    @property
    def admission(self) -> Admission:
        """The gate for requests. Raises :class:`ConfigError` before ``open``."""
        if self._admission is None:
            raise ConfigError("the engine has not been started.")
        return self._admission

    def open(self, ready: Ready) -> None:
        """The engine is ready."""
        self.max_length = ready.max_length
        self.adapters.update({adapter.name: adapter for adapter in ready.adapters or ()})
        self._admission = Admission(
            self.tokenizer,
            Limits(
                max_length=ready.max_length,
                vocab_size=ready.context.model.vocab_size,
                eos_ids=self.tokenizer.eos_ids,
                longest_token=self._longest_token,
                processors=tuple(ready.processors),
                structured=self.config.structured_outputs,
                structured_off=ready.structured_off,
            ),
            seed=self.config.model.seed,
            select_adapter=self.host.select_adapter if self.host.selects_adapters else None,
            adapters=self.adapters,
        )

    def load_adapter(self, name: str, path: str | Path, pinned: bool) -> LoadAdapter:
        """The message to send; refuses a name that can't be served."""
        if not isinstance(name, str) or not 0 < len(name) <= MAX_ADAPTER_NAME or not name.isprintable():
            raise RequestError(
                f"an adapter's name must be text of 1 to {MAX_ADAPTER_NAME} printable characters.", param="name"
            )
        if name == self.profile.name:
            raise RequestError(f"{name!r} is the base model; give the adapter another name.", param="name")
        return LoadAdapter(next(self._tickets), name, os.path.abspath(path), bool(pinned))

    def resolve_adapter(self, name: str | None) -> Path | None:
        """Where an adapter is that must be loaded before it can be used; ``None`` if there is nothing to load."""
        if name is None or name in self.adapters or self._resolver is None or name == self.profile.name:
            return None
        return self._resolver.find(name)

    def unload_adapter(self, name: str) -> UnloadAdapter:
        """The message to send. The name is gone at once for new requests."""
        if self.adapters.pop(name, None) is None:
            raise NotFoundError(f"there is no adapter {name!r} here.{nearest(name, self.adapters)}", param="name")
        ticket = self._unloaded[name] = next(self._tickets)
        return UnloadAdapter(ticket, name)

    def note_adapter(self, reply: AdapterReply) -> None:
        """An adapter has come into use, unless it was unloaded while the answer was on its way."""
        if self._unloaded.get(reply.name) == reply.ticket:
            del self._unloaded[reply.name]  # nothing older is on its way any more
        elif reply.served is not None and reply.ticket > self._unloaded.get(reply.name, 0):
            self.adapters[reply.name] = reply.served

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; refuses text that can't fit before tokenising it."""
        return self.admission.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text; refuses ids out of range."""
        ids = check_token_ids(token_ids, self.profile.vocab_size, "token_ids")
        return self.tokenizer.decode(ids, skip_special_tokens)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's own text; refuses ids out of range."""
        ids = check_token_ids(token_ids, self.profile.vocab_size, "token_ids")
        return [self.tokenizer.token_text(token) for token in ids]

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages through the chat template, to token ids."""
        text = self.tokenizer.render_chat(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            options=options,
        )
        return self.encode(text, add_special_tokens=False)

    def submit(
        self,
        prompt_ids: list[int],
        bad_word_ids: list[list[int]],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        adapter: str | None = None,
        cache_salt: str | None = None,
        arrival: Arrival | None = None,
        pooling: str = "",
    ) -> tuple[Submit, Answers]:
        """The message to send and what turns the engine's outputs into answers. One thread at a time."""
        submit = self.admission.submit(
            self._next_id,
            prompt_ids,
            params,
            bad_word_ids=bad_word_ids,
            priority=priority,
            adapter=adapter,
            cache_salt=cache_salt,
            arrival=arrival,
            pooling=pooling,
        )
        self._next_id += params.n
        label = request_id if request_id is not None else f"request-{next(self._labels)}"
        return submit, Answers(label, submit, self.tokenizer)


class TokensOnly:
    """Stands in for the tokenizer of a model that comes without one: token ids in, token ids out."""

    has_chat_template = False
    special_ids: frozenset[int] = frozenset()

    def __init__(self, eos_ids: tuple[int, ...], reason: str) -> None:
        self.eos_ids = eos_ids
        self._reason = reason

    def chat_template(self, tools: bool = False) -> str | None:
        """No template."""
        return None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Refuses."""
        raise RequestError(f"text needs a tokenizer; send token ids. {self._reason}", param="prompt")

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **_: Any) -> str:
        """Refuses."""
        raise RequestError(f"chat needs a tokenizer; send token ids. {self._reason}", param="messages")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """No text."""
        return ""

    def token_text(self, token: int) -> str:
        """No text."""
        return ""

    def token_bytes(self, token: int) -> bytes:
        """No text."""
        return b""


def _tokenizer(profile: ModelProfile, config: LaunchConfig) -> Tokenizer | TokensOnly:
    try:
        return load_tokenizer(profile, config.model.tokenizer, config.model.chat_template)
    except NoTokenizerError as error:
        _log.warning("%s", error)
        return TokensOnly(profile.eos_ids, str(error))


def _longest_token(tokenizer: Tokenizer | TokensOnly) -> int:
    """In characters, or in bytes, which are more."""
    if isinstance(tokenizer, TokensOnly):
        return 1
    return max(map(len, tokenizer.backend.get_vocab(with_added_tokens=True)), default=1)


def _default_sampling(profile: ModelProfile) -> dict[str, Any]:
    """What the checkpoint's generation_config.json recommends, as far as it is valid."""
    found: dict[str, Any] = {}
    for name in _GENERATION:
        value = profile.generation.get(name)
        if value is None:
            continue
        try:
            SamplingParams(**{name: value})
        except RequestError as error:
            _log.warning("generation_config.json of %s: %s It is ignored.", profile.name, error)
        else:
            found[name] = value
    return found
