"""The load generator against a server in this process."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ConfigError, OctavoError
from octavo_bench.command import bench
from octavo_bench.http import ExchangeError, fetch, parse_url
from octavo_bench.load import Asking, offer
from octavo_bench.sizes import Job


def ask(fake: Any, *jobs: Job, most: int | None = None, **asking: Any) -> Any:
    return asyncio.run(offer(parse_url(fake.url), Asking("fake", **asking), jobs, most))


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_tokens_are_counted_however_the_answer_is_framed(fake: Any, framing: str, chat: bool) -> None:
    fake.framing = framing
    prompt: Any = "hello" if chat else [1, 2, 3]
    (seen,), seconds = ask(fake, Job(prompt, 5), chat=chat)
    assert seen.error is None
    assert (seen.input_tokens, seen.output_tokens, len(seen.pieces)) == (77, 5, 5)
    assert seen.sent <= seen.pieces[0] <= seen.finished <= seen.sent + seconds
    (body,) = fake.bodies
    assert body["max_tokens"] == 5
    assert body["stream"]
    assert body["ignore_eos"]
    assert body["messages" if chat else "prompt"] == ([{"role": "user", "content": "hello"}] if chat else [1, 2, 3])


def test_without_usage_pieces_and_ids_are_counted(fake: Any) -> None:
    fake.usage = False
    (seen,), _ = ask(fake, Job([1, 2, 3], 4))
    assert (seen.input_tokens, seen.output_tokens) == (3, 4)


def test_times_are_the_servers(fake: Any) -> None:
    fake.first_delay, fake.delay = 0.2, 0.05
    (seen,), seconds = ask(fake, Job([1], 5))
    found = seen.latencies()
    assert found["ttft"][0] >= 200
    assert len(found["itl"]) == 4
    assert min(found["itl"]) > 10
    assert sum(found["itl"]) >= 199
    assert found["tpot"][0] == pytest.approx(sum(found["itl"]) / 4)
    assert found["e2el"][0] >= 400
    assert seconds >= 0.4


def test_concurrency_is_limited(fake: Any) -> None:
    fake.first_delay = 0.02
    seen, _ = ask(fake, *[Job([1], 2)] * 12, most=3)
    assert all(each.error is None for each in seen)
    assert fake.most_running == 3
    # Waiting for a turn is not the server's doing.
    assert max(each.latencies()["e2el"][0] for each in seen) < 12 * 20


def test_requests_are_sent_at_their_times(fake: Any) -> None:
    ask(fake, *(Job([1], 1, at) for at in (0.0, 0.15, 0.3)))
    gaps = [after - before for before, after in itertools.pairwise(fake.times)]
    assert min(gaps) > 0.1


def test_failures_are_told_apart(fake: Any) -> None:
    fake.fail, fake.fail_every = 503, 2
    seen, _ = ask(fake, *[Job([1], 2)] * 4)
    errors = [each.error for each in seen if each.error]
    assert len(errors) == 2
    assert all("status 503" in error and "no room" in error for error in errors)


def test_a_broken_stream_and_a_silent_server_are_failures(fake: Any) -> None:
    fake.breaks = True
    (seen,), _ = ask(fake, Job([1], 2))
    assert "[DONE]" in seen.error
    fake.breaks, fake.first_delay = False, 5.0
    (seen,), seconds = ask(fake, Job([1], 2), timeout=0.1)
    assert "no answer after 0.1 seconds" in seen.error
    assert seconds < 4


def test_no_server_is_an_error_that_says_so() -> None:
    with pytest.raises(ExchangeError, match="no connection"):
        asyncio.run(fetch(parse_url("http://127.0.0.1:1"), "GET", "/models"))


def test_urls() -> None:
    for text in ("http://h:9", "http://h:9/", "http://h:9/v1", "http://h:9/v1/"):
        server = parse_url(text)
        assert (server.host, server.port, server.base, server.tls) == ("h", 9, "/v1", None)
    secure = parse_url("https://h/api/v1", key="secret")
    assert (secure.port, secure.base, secure.headers) == (443, "/api/v1", {"Authorization": "Bearer secret"})
    assert secure.tls is not None
    for wrong in ("h:9", "ftp://h", "http://", "http://h:nine"):
        with pytest.raises(ConfigError, match="--url"):
            parse_url(wrong)


def test_the_command_reports_records_and_draws(
    fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], read_lines: Any
) -> None:
    json_file, plot = tmp_path / "figures.jsonl", tmp_path / "plot.svg"
    (tmp_path / "key").write_text("sesame\n")
    words = ["serve", "--url", fake.url, "--requests", "6", "--input-len", "uniform:3-9", "--output-len", "4"]
    words += ["--request-rate", "200", "--goodput", "ttft:5000", "--repeats", "2", "--json", str(json_file)]
    words += ["--plot", str(plot), "--machine", "test bench", "--server", "fake 1", "--body", '{"top_p": 0.5}']
    words += ["--api-key-file", str(tmp_path / "key")]
    assert bench(words) == 0
    out = capsys.readouterr().out
    assert "6 requests" in out
    assert "TTFT" in out
    assert len(fake.bodies) == 13  # one warms up
    assert all(body["model"] == "fake" and body["top_p"] == 0.5 for body in fake.bodies)
    assert all(3 <= len(body["prompt"]) <= 9 for body in fake.bodies)
    assert all("Authorization: Bearer sesame" in head for head in fake.heads)
    records = {record["metric"]: record for record in read_lines(json_file)}
    assert records["output_tok_s"]["value"] > 0
    assert len(records["ttft_ms_p99"]["repeats"]) == 2
    assert records["failed_requests"]["value"] == 0
    assert records["goodput_requests_s"]["value"] == pytest.approx(records["requests_s"]["value"])
    assert {record["machine"] for record in records.values()} == {"test bench"}
    assert records["itl_ms_mean"]["versions"]["server"] == "fake 1"
    assert "--api-key-file key" in records["itl_ms_mean"]["command"]
    assert str(tmp_path) not in json_file.read_text()
    assert plot.read_text().startswith("<svg")


def test_chats_are_sent_words_and_conversations_their_text(fake: Any, tmp_path: Path) -> None:
    common = ["serve", "--url", fake.url, "--endpoint", "chat", "--warmup-requests", "0", "--no-ignore-eos"]
    words = ["--requests", "3", "--dataset", "shared-prefix", "--prefix-len", "8", "--input-len", "2"]
    assert bench([*common, *words, "--output-len", "2"]) == 0
    texts = [body["messages"][0]["content"].split() for body in fake.bodies]
    assert {len(text) for text in texts} == {10}
    assert len({tuple(text[:8]) for text in texts}) == 1
    assert "ignore_eos" not in fake.bodies[0]
    talk = tmp_path / "talk.json"
    turns = [{"from": "human", "value": "What is the capital?"}, {"from": "gpt", "value": "It is Paris, I say."}]
    talk.write_text(json.dumps([{"conversations": turns}]))
    assert bench([*common, "--requests", "1", "--dataset", "sharegpt", "--path", str(talk)]) == 0
    assert fake.bodies[-1]["messages"][0]["content"] == "What is the capital?"
    assert fake.bodies[-1]["max_tokens"] == 5


def test_a_trace_is_replayed_at_its_speed(fake: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 10 + 2 * i, "input": 3 + i, "output": 2} for i in range(3)]
    trace.write_text("\n".join(map(json.dumps, rows)))
    words = ["serve", "--url", fake.url, "--dataset", "trace", "--path", str(trace), "--speed", "20"]
    assert bench([*words, "--warmup-requests", "0"]) == 0
    assert [len(body["prompt"]) for body in fake.bodies] == [3, 4, 5]
    assert 0.15 < fake.times[-1] - fake.times[0] < 2


def test_failures_show_in_the_exit_code(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake.fail, fake.fail_every = 500, 2
    words = ["serve", "--url", fake.url, "--requests", "4", "--output-len", "2", "--warmup-requests", "0"]
    assert bench(words) == 1
    assert "2 requests of the last run failed" in capsys.readouterr().out
    fake.fail_every = 1
    with pytest.raises(OctavoError, match="all 4 requests failed; the first: status 500"):
        bench(words)
