"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from octavo.contracts.api import EngineClient
from octavo.errors import RequestError
from octavo_api.answer import json_response
from octavo_api.generate import check_ready
from octavo_api.guard import Call
from octavo_api.models import Names
from octavo_api.options import OpenAIOptions
from octavo_api.parse import parse
from octavo_api.schemas_tokens import DetokenizeBody, TokenizeBody
from octavo_api.template_options import check_template_kwargs
from octavo_api.unsupported import check_extras, check_message

_UNSUPPORTED: Final[dict[str, Sequence[Any]]] = {"chat_template": (), "mm_processor_kwargs": ()}


@dataclass(frozen=True, slots=True)
class Tokens:
    """The two handlers, and what they need."""

    client: EngineClient
    options: OpenAIOptions
    names: Names

    async def tokenize(self, call: Call) -> Response:
        """``POST /tokenize``, as vLLM has it: a text or a conversation."""
        check_ready(self.client)
        body = parse(TokenizeBody, call.body)
        ignore = self.options.unknown_fields == "ignore"
        check_extras(body, _UNSUPPORTED, "", ignore_unknown=ignore)
        for index, message in enumerate(body.messages or ()):
            check_message(message, f"messages[{index}].", ignore)
        self.names.resolve(body.model)
        ids = await self._ids(body)
        texts = await self.client.token_texts(ids) if body.return_token_strs else None
        return json_response(
            {"count": len(ids), "max_model_len": self.client.max_length, "tokens": ids, "token_strs": texts}
        )

    async def detokenize(self, call: Call) -> Response:
        """``POST /detokenize``."""
        check_ready(self.client)
        body = parse(DetokenizeBody, call.body)
        check_extras(body, {}, "", ignore_unknown=self.options.unknown_fields == "ignore")
        self.names.resolve(body.model)
        text = await self.client.decode(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))
        return json_response({"prompt": text})

    async def _ids(self, body: TokenizeBody) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("Give either prompt, a text, or messages, a conversation.", param="prompt")
        if body.prompt is not None:
            return await self.client.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
        if not self.client.has_chat_template:
            raise RequestError("This model has no chat template; send a prompt.", param="messages")
        if body.add_special_tokens:
            raise RequestError("The chat template writes special tokens itself.", param="add_special_tokens")
        check_template_kwargs(body.chat_template_kwargs, self.options.template_kwargs)
        proceed = bool(body.continue_final_message)
        begin = not proceed if body.add_generation_prompt is None else body.add_generation_prompt
        return await self.client.render_chat(
            [message.for_template() for message in body.messages or ()],
            tools=body.tools,
            add_generation_prompt=begin,
            continue_final_message=proceed,
            template_options=body.chat_template_kwargs,
        )
