"""Fields that this server knows and cannot honour, and fields that nobody knows. Neither is ignored in silence.

A known field is accepted at its neutral values, which ask for nothing; ``null`` is always neutral.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo.errors import RequestError, nearest
from octavo_api.schemas import Body
from octavo_api.schemas_chat import ChatBody, Message
from octavo_api.schemas_completions import CompletionBody
from octavo_api.schemas_structured import StructuredBody
from octavo_api.schemas_tools import NamedChoice

Neutral = Mapping[str, Sequence[Any]]

_COMMON: Final[Neutral] = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
}
_OTHER_SERVERS: Final[Neutral] = {  # of vLLM and SGLang
    "truncation_side": ("left",),
    "logprob_token_ids": (),
    "thinking_token_budget": (-1,),
    "repetition_detection": (),
    "watermarking": (),
    "session_id": (),
    "return_prompt_text": (False,),
    "return_token_offsets": (False,),
    "return_weight_versions": (False,),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "vllm_xargs": (),
    "stream_interval": (1,),
    "media_io_kwargs": (),
    "mm_processor_kwargs": (),
    "data_parallel_rank": (),
    "stop_regex": (),
    "no_stop_trim": (False,),
    "lora_path": (),
    "custom_logit_processor": (),
    "custom_params": (),
    "rid": (),
    "return_hidden_states": (False,),
    "session_params": (),
    "input_ids": (),
}
_CHAT: Final[Neutral] = {
    **_COMMON,
    **_OTHER_SERVERS,
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "add_special_tokens": (False,),
}
_COMPLETION: Final[Neutral] = {
    **_COMMON,
    **_OTHER_SERVERS,
    "suffix": ("",),
    "prompt_embeds": (),
}
_MESSAGE: Final[Neutral] = {
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "function_call": (),
}
_STRUCTURED: Final[Neutral] = {"structural_tag": (), "disable_additional_properties": (False,)}
_STREAM_OPTIONS: Final[Neutral] = {"include_obfuscation": (False,)}
_TOOL_CALL: Final[Neutral] = {"index": range(1024)}


def check_chat(body: ChatBody, *, ignore_unknown: bool) -> None:
    """Raise :class:`RequestError` for the first field of a chat request that can't be honoured."""
    check_extras(body, _CHAT, "", ignore_unknown=ignore_unknown)
    _check_structured(body, ignore_unknown)
    for index, tool in enumerate(body.tools or ()):
        check_extras(tool, {}, f"tools[{index}].", ignore_unknown=ignore_unknown)
        check_extras(tool.function, {}, f"tools[{index}].function.", ignore_unknown=ignore_unknown)
    if isinstance(body.tool_choice, NamedChoice):
        check_extras(body.tool_choice, {}, "tool_choice.", ignore_unknown=ignore_unknown)
        check_extras(body.tool_choice.function, {}, "tool_choice.function.", ignore_unknown=ignore_unknown)
    for index, message in enumerate(body.messages):
        check_message(message, f"messages[{index}].", ignore_unknown)
    _check_stream_options(body, ignore_unknown)


def check_completion(body: CompletionBody, *, ignore_unknown: bool) -> None:
    """Likewise for a completion request."""
    check_extras(body, _COMPLETION, "", ignore_unknown=ignore_unknown)
    _check_structured(body, ignore_unknown)
    _check_stream_options(body, ignore_unknown)


def check_extras(body: Body, known: Neutral, where: str, *, ignore_unknown: bool) -> None:
    """Raise for undeclared fields of ``body``: known ones unless neutral, unknown ones unless ignored."""
    for name, value in (body.model_extra or {}).items():
        if name in known:
            if value is None or any(type(value) is type(ok) and value == ok for ok in known[name]):
                continue
            raise RequestError(
                f"{where}{name} is not supported by this server.", param=where + name, code="unsupported_parameter"
            )
        if not ignore_unknown:
            fields = [*type(body).model_fields, *known]
            shown = name if len(name) <= 100 else name[:100] + "…"
            raise RequestError(
                f"{where}{shown} is not a field that this server knows.{nearest(name[:100], fields)}",
                param=where + shown,
                code="unknown_parameter",
            )


def _check_structured(body: StructuredBody, ignore_unknown: bool) -> None:
    """Nothing of a form may be left out in silence, or the answer would be freer than was asked for."""
    wanted = body.response_format
    if wanted is not None:
        check_extras(wanted, {}, "response_format.", ignore_unknown=ignore_unknown)
        if wanted.json_schema is not None:
            check_extras(wanted.json_schema, {}, "response_format.json_schema.", ignore_unknown=ignore_unknown)
    if body.structured_outputs is not None:
        check_extras(body.structured_outputs, _STRUCTURED, "structured_outputs.", ignore_unknown=False)


def check_message(message: Message, where: str, ignore_unknown: bool) -> None:
    """Likewise for one message, which stands at ``where``."""
    if message.model_extra:
        check_extras(message, _MESSAGE, where, ignore_unknown=ignore_unknown)
    for index, call in enumerate(message.tool_calls or ()):
        check_extras(call, _TOOL_CALL, f"{where}tool_calls[{index}].", ignore_unknown=ignore_unknown)
        check_extras(call.function, {}, f"{where}tool_calls[{index}].function.", ignore_unknown=ignore_unknown)


def _check_stream_options(body: ChatBody | CompletionBody, ignore_unknown: bool) -> None:
    if body.stream_options is None:
        return
    check_extras(body.stream_options, _STREAM_OPTIONS, "stream_options.", ignore_unknown=ignore_unknown)
    if not body.stream:
        raise RequestError("stream_options needs stream to be true.", param="stream_options")
