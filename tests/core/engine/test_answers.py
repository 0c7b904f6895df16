"""From the engine's outputs to deltas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.contracts.api import Delta
from octavo.engine.answers import Answers
from octavo.engine.messages import Output, Submit, TokenScore
from octavo.errors import RequestError
from octavo.params import SamplingParams

EOS = 256


class ByteTokenizer:
    special_ids = frozenset([EOS])

    def decode(self, ids, skip_special_tokens=False):
        names = [
            b"<eos>" if token == EOS else bytes([token]) for token in ids if token != EOS or not skip_special_tokens
        ]
        return b"".join(names).decode(errors="replace")

    def token_text(self, token):
        return self.decode([token])

    def token_bytes(self, token):
        return bytes([token])


def answers(prompt=b"Q: ", first_id=10, max_tokens=100, **params):
    chosen = SamplingParams(max_tokens=max_tokens, **params)
    submit = Submit(first_id, [*prompt], chosen, [EOS], [EOS], [], 0, max_tokens, 0, 5.0, None, None)
    return Answers("label", submit, ByteTokenizer())


def feed(request, chunks, finish=None, answer=10):
    """Push chunks of token ids; the deltas, and the ids to abort."""
    deltas, aborts = [], []
    for number, chunk in enumerate(chunks):
        reason = finish if number == len(chunks) - 1 else None
        new, abort = request.push(Output(answer, [*chunk], finish_reason=reason), now=6.0)
        deltas += new
        aborts += [abort] if abort is not None else []
    return deltas, aborts


def text_of(deltas):
    return "".join(delta.text for delta in deltas)


def test_plain_answer():
    request = answers()
    deltas, aborts = feed(request, [b"Pa", b"ris", [EOS]], "stop")
    assert [delta.text for delta in deltas] == ["Pa", "ris", ""]
    assert [delta.token_ids for delta in deltas] == [[*b"Pa"], [*b"ris"], [EOS]]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", None)
    assert aborts == []
    assert request.unfinished == set()


def test_stop_string_ends_the_answer_in_the_middle_of_a_delta():
    request = answers(stop=["\nQ:"], logprobs=0)
    request.push(Output(10, [*b"yes"], [score(token) for token in b"yes"]), now=6.0)
    deltas, abort = request.push(Output(10, [*b"\nQ: no"], [score(token) for token in b"\nQ: no"]), now=6.0)
    assert deltas == [
        Delta(0, "", [*b"\nQ:"], deltas[0].logprobs, finish_reason="stop", stop_reason="\nQ:"),
    ]
    assert [entry.token_id for entry in deltas[0].logprobs] == [*b"\nQ:"]
    assert abort == 10
    assert request.push(Output(10, [*b"more"]), now=6.0) == ([], None)


def test_stop_string_can_stay_in_the_text():
    deltas, _ = feed(answers(stop=["END"], include_stop_str_in_output=True), [b"a E", b"ND b"])
    assert text_of(deltas) == "a END"
    assert deltas[0].text == "a "


def test_stop_string_in_the_last_step_needs_no_abort():
    deltas, aborts = feed(answers(stop=["b"]), [b"ab"], "length")
    assert aborts == []
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason, text_of(deltas)) == ("stop", "b", "a")


def test_held_text_is_shown_when_the_answer_ends():
    deltas, _ = feed(answers(stop=["STOP"]), [b"a S", b"T"], "length")
    assert [delta.text for delta in deltas] == ["a ", "ST"]


def test_min_tokens_defers_stop_strings():
    deltas, _ = feed(answers(stop=["a"], min_tokens=3), [b"a", b"a", b"a", b"b", b"a"])
    assert text_of(deltas) == "aaab"
    assert deltas[-1].finish_reason == "stop"


def test_token_that_ended_the_answer_has_no_text_unless_wanted():
    final = Output(10, [*b"ab"], finish_reason="stop", stop_reason=98)
    deltas, _ = answers(stop_token_ids=[98]).push(final, now=6.0)
    assert (deltas[0].text, deltas[0].stop_reason, deltas[0].token_ids) == ("a", 98, [*b"ab"])
    kept = answers(stop_token_ids=[98], include_stop_str_in_output=True)
    assert kept.push(final, now=6.0)[0][0].text == "ab"


def test_without_detokenising_there_are_only_ids():
    deltas, _ = feed(answers(detokenize=False), [b"ab", [EOS]], "stop")
    assert text_of(deltas) == ""
    assert [token for delta in deltas for token in delta.token_ids] == [*b"ab", EOS]


@given(
    st.text("aé€😀", max_size=30), st.lists(st.integers(1, 4), min_size=1), st.sampled_from([(), ("é",), ("€a",)])
)
def test_chunks_of_any_size_give_the_same_answer(text, sizes, stops):
    ids, chunks = [*text.encode()], []
    while ids:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(ids[:size])
        ids = ids[size:]
    deltas, _ = feed(answers(stop=stops), [*chunks, [EOS]], "stop")
    ends = [text.find(stop) for stop in stops if stop in text]
    assert text_of(deltas) == (text[: min(ends)] if ends else text)
    assert not any("\ufffd" in delta.text for delta in deltas)


def score(token, logprob=-0.5, top=()):
    return TokenScore(token, logprob, 1, list(top), [-1.0] * len(top))


def test_logprobs_carry_texts():
    request = answers(logprobs=2)
    deltas, _ = request.push(Output(10, [97], [score(97, top=[97, 98])]), now=6.0)
    entry = deltas[0].logprobs[0]
    assert (entry.token_id, entry.token, entry.bytes, entry.logprob, entry.rank) == (97, "a", b"a", -0.5, 1)
    assert [(top.token, top.rank) for top in entry.top] == [("a", 1), ("b", 2)]


def test_prompt_logprobs_are_gathered_from_several_steps():
    request = answers(prompt=b"abcd", prompt_logprobs=0)
    assert request.push(Output(10, [], prompt_scores=[score(98), score(99)]), now=6.0) == ([], None)
    deltas, _ = request.push(Output(10, [120], prompt_scores=[score(100)], cached_tokens=0), now=6.0)
    logprobs = deltas[0].prompt.logprobs
    assert logprobs[0] is None
    assert [entry.token_id for entry in logprobs[1:]] == [*b"bcd"]


def test_first_delta_carries_the_prompt():
    request = answers(prompt=b"abcd")
    deltas, _ = request.push(Output(10, [120], cached_tokens=3, scheduled_at=5.5), now=6.0)
    assert deltas[0].prompt.token_ids == [*b"abcd"]
    assert deltas[0].prompt.cached_tokens == 3
    assert deltas[0].prompt.logprobs is None
    assert request.push(Output(10, [121]), now=6.5)[0][0].prompt is None


def test_prompt_comes_first_whichever_answer_is_quicker():
    request = answers(n=3)
    assert request.push(Output(12, [97]), now=6.0) == ([], None)
    assert request.push(Output(12, [97], finish_reason="length"), now=6.0) == ([], None)
    deltas, _ = request.push(Output(10, [98], cached_tokens=1), now=6.0)
    assert [delta.index for delta in deltas] == [0, 2, 2]
    assert deltas[0].prompt.cached_tokens == 1
    assert deltas[1].prompt is None
    assert request.push(Output(11, [99]), now=6.0)[0][0].index == 1


def test_answers_end_one_by_one():
    request = answers(n=2, stop=["b"])
    _, aborts = feed(request, [b"ab"], answer=10)
    assert aborts == [10]
    assert request.unfinished == {11}
    feed(request, [b"a"], "length", answer=11)
    assert request.unfinished == set()
    summary = request.summary(now=9.0)
    assert (summary.finish_reason, summary.output_tokens, summary.prompt_tokens) == ("length", 3, 3)


def test_summary():
    request = answers()
    request.push(Output(10, [*b"ab"], cached_tokens=2, scheduled_at=5.25), now=6.0)
    assert request.summary(now=6.5).finish_reason == "abort"
    request.push(Output(10, [99], finish_reason="length"), now=7.0)
    summary = request.summary(now=7.0)
    assert (summary.request_id, summary.adapter, summary.cached_tokens, summary.output_tokens) == (
        "label",
        None,
        2,
        3,
    )
    assert (summary.queue_time, summary.time_to_first_token, summary.duration) == (0.25, 1.0, 2.0)
    assert summary.finish_reason == "length"


def test_engine_error_is_raised():
    with pytest.raises(RequestError, match="not finite") as caught:
        answers().push(Output(10, [], finish_reason="error", error="The logits are not finite."), now=6.0)
    assert caught.value.status == 500
