"""From the engine's outputs to the deltas that a caller sees: text, stop strings, log-probabilities.

Belongs to the API process, and knows nothing of sockets or event loops: ``LLM`` and ``AsyncEngine`` share it.
"""

from __future__ import annotations

from typing import Protocol

from octavo.contracts.api import Delta, PromptInfo, RequestSummary, TokenLogprob
from octavo.engine.detokenize import Decoder, Detokenizer
from octavo.engine.messages import Output, Submit, TokenScore
from octavo.engine.stop import StopStrings
from octavo.errors import RequestError


class TokenTexts(Decoder, Protocol):
    """The part of a tokenizer that answers need."""

    def token_text(self, token: int) -> str: ...
    def token_bytes(self, token: int) -> bytes: ...


class Answer:
    """One of a request's ``n`` answers."""

    __slots__ = ("_detokenizer", "_index", "_params", "_stops", "_tokenizer", "finish_reason", "tokens")

    def __init__(self, index: int, submit: Submit, tokenizer: TokenTexts) -> None:
        params = submit.params
        self._index = index
        self._params = params
        self._tokenizer = tokenizer
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._detokenizer = (
            Detokenizer(tokenizer, submit.prompt_ids, params.skip_special_tokens) if params.detokenize else None
        )
        self.tokens = 0
        self.finish_reason: str | None = None

    def push(self, output: Output) -> Delta:
        """The next piece. Tokens behind the end of a stop string are dropped."""
        delta = Delta(self._index, "", output.token_ids)
        delta.finish_reason, delta.stop_reason = output.finish_reason, output.stop_reason
        found = self._write(delta) if self._detokenizer is not None else None
        if found is not None:
            delta.finish_reason, delta.stop_reason = "stop", found
        if output.scores is not None:
            delta.logprobs = [_logprob(self._tokenizer, score) for score in output.scores[: len(delta.token_ids)]]
        self.tokens += len(delta.token_ids)
        self.finish_reason = delta.finish_reason
        return delta

    def _write(self, delta: Delta) -> str | None:
        """Fill in the text; the stop string, if one was found."""
        assert self._detokenizer is not None
        token_ids, pieces = delta.token_ids, []
        shown = len(token_ids)
        if delta.finish_reason == "stop" and not self._params.include_stop_str_in_output:
            shown -= 1  # the token that ended the answer
        found = None
        for index in range(shown):
            armed = self.tokens + index >= self._params.min_tokens
            text, found = self._stops.push(self._detokenizer.push(token_ids[index]), armed)
            pieces.append(text)
            if found is not None:
                delta.token_ids = token_ids[: index + 1]
                break
        else:
            if delta.finish_reason is not None:
                text, found = self._stops.push(self._detokenizer.flush())
                pieces += [text, self._stops.flush()]
        delta.text = "".join(pieces)
        return found


class Answers:
    """All answers to one request."""

    __slots__ = (
        "_accepted",
        "_answers",
        "_drafted",
        "_early",
        "_opened",
        "_prompt_scores",
        "_scheduled_at",
        "_started_at",
        "_submit",
        "_tokenizer",
        "label",
        "pooled",
        "prompt",
        "unfinished",
    )

    def __init__(self, label: str, submit: Submit, tokenizer: TokenTexts) -> None:
        self.label = label
        self._submit = submit
        self._tokenizer = tokenizer
        self._answers = [Answer(index, submit, tokenizer) for index in range(submit.params.n)]
        self._early: list[Delta] = []
        self._prompt_scores: list[TokenScore] = []
        self._opened = False
        self._drafted = self._accepted = 0
        self._scheduled_at: float | None = None
        self._started_at: float | None = None
        self.prompt = PromptInfo(submit.prompt_ids, 0, None)
        self.pooled = b""
        self.unfinished = set(self.ids)
        """Ids that the engine still works on."""

    @property
    def ids(self) -> range:
        """The ids of all answers."""
        return range(self._submit.id, self._submit.id + self._submit.params.n)

    def push(self, output: Output, now: float) -> tuple[list[Delta], int | None]:
        """Deltas to show, and the id that the engine must be told to abort because of a stop string.

        Raises :class:`octavo.errors.RequestError` when the engine could not go on with this request.
        """
        if output.id not in self.unfinished:
            return [], None
        if output.error is not None:
            error = RequestError(output.error, code="generation_failed")
            error.status = 500
            raise error
        if output.pooled is not None:
            self.pooled = output.pooled
        self._drafted += output.drafted
        self._accepted += output.accepted
        if output.prompt_scores:
            self._prompt_scores += output.prompt_scores
        if not output.token_ids and output.finish_reason is None:
            return [], None
        delta = self._answers[output.id - self._submit.id].push(output)
        if delta.finish_reason is not None:
            self.unfinished.discard(output.id)
        stopped = delta.finish_reason is not None and output.finish_reason is None
        return self._in_order(delta, output, now), output.id if stopped else None

    def summary(self, now: float) -> RequestSummary:
        """For ``octavo_request_finished``. An answer without a reason was given up by the caller."""
        submit = self._submit
        reasons = [answer.finish_reason or "abort" for answer in self._answers]
        return RequestSummary(
            request_id=self.label,
            adapter=submit.adapter,
            prompt_tokens=len(submit.prompt_ids),
            cached_tokens=self.prompt.cached_tokens,
            output_tokens=sum(answer.tokens for answer in self._answers),
            finish_reason=reasons[0] if len(set(reasons)) == 1 else max(reasons, key=_SEVERITY.index),
            queue_time=_since(submit.arrival, self._scheduled_at),
            time_to_first_token=_since(submit.arrival, self._started_at),
            duration=now - submit.arrival,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )

    def _in_order(self, delta: Delta, output: Output, now: float) -> list[Delta]:
        """The first delta of all carries the prompt, and what is known of it comes with the first answer."""
        if self._opened:
            return [delta]
        if delta.index != 0:
            self._early.append(delta)
            return []
        self._opened = True
        self._started_at, self._scheduled_at = now, output.scheduled_at
        self.prompt.cached_tokens = output.cached_tokens
        self.prompt.queue_time = _since(self._submit.arrival, output.scheduled_at)
        if self._submit.params.prompt_logprobs is not None:
            scored = [_logprob(self._tokenizer, score) for score in self._prompt_scores]
            self.prompt.logprobs = [None, *scored]
        delta.prompt = self.prompt
        early, self._early = self._early, []
        return [delta, *early]


_SEVERITY = ["stop", "length", "abort"]


def _since(start: float, moment: float | None) -> float | None:
    return None if moment is None else moment - start


def _logprob(tokenizer: TokenTexts, score: TokenScore) -> TokenLogprob:
    def entry(token: int, logprob: float, rank: int) -> TokenLogprob:
        return TokenLogprob(token, tokenizer.token_text(token), tokenizer.token_bytes(token), logprob, rank)

    main = entry(score.token, score.logprob, score.rank)
    pairs = zip(score.top_ids, score.top_logprobs, strict=True)
    main.top = [entry(token, logprob, rank) for rank, (token, logprob) in enumerate(pairs, 1)]
    return main
