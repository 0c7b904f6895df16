"""From a submitted message to the scheduler's request, and from what comes of it to what clients are told."""

from __future__ import annotations

import logging

import msgspec

from octavo.contracts.executor import RowLogprobs
from octavo.contracts.sampling import LogitsProcessor
from octavo.engine.messages import SEED_MASK, Submit, TokenScore
from octavo.errors import RequestError
from octavo.scheduling.request import Request

_log = logging.getLogger("octavo.engine")


def uses(processor: LogitsProcessor, submit: Submit) -> bool:
    """Whether the request uses it, asked of an instance that samples nothing. One that fails here fails there."""
    try:
        return bool(processor.admit(0, submit.params, submit.prompt_ids, []))
    except Exception:
        return True
    finally:
        processor.release(0)


def request_of(submit: Submit, index: int, root: bytes, adapter_key: int, speculates: bool) -> Request:
    """Answer ``index`` of the message as the scheduler knows it."""
    params = submit.params
    if index and params.prompt_logprobs is not None:  # the answers share their prompt: one of them scores it
        params = msgspec.structs.replace(params, prompt_logprobs=None)
    return Request(
        id=submit.id + index,
        prompt_ids=submit.prompt_ids,
        params=params,
        max_tokens=submit.max_tokens,
        root=root,
        priority=submit.priority,
        arrival=submit.arrival,
        adapter=submit.adapter,
        adapter_key=adapter_key,
        stop_ids=frozenset(submit.stop_ids),
        eos_ids=frozenset(submit.eos_ids),
        seed=(submit.seed + index) & SEED_MASK,
        bad_word_ids=submit.bad_word_ids,
        speculates=speculates and not submit.pooling,
        pooling=submit.pooling,
    )


def refusal_of(error: Exception) -> RequestError:
    """What the client is told. An error that is not about the request is Octavo's or a plugin's: 500."""
    if isinstance(error, RequestError):
        return error
    _log.error("a request could not be admitted", exc_info=error)
    refusal = RequestError(
        f"the engine could not take this request: {type(error).__name__}: {error}", code="internal_error"
    )
    refusal.status = 500
    return refusal


def score_of(entry: RowLogprobs) -> TokenScore:
    """As plain numbers: an executor may well hand out numpy's."""
    return TokenScore(
        int(entry.token),
        float(entry.logprob),
        int(entry.rank),
        [int(token) for token in entry.top_ids],
        [float(logprob) for logprob in entry.top_logprobs],
    )
