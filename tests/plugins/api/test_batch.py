"""``octavo run-batch``: lines in, lines out, each bad one on its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from octavo.errors import OverloadedError
from octavo.testing.client import ScriptedClient
from octavo.testing.tiny import tiny_llama
from octavo_api.batch import Batch
from octavo_api.options import OpenAIOptions

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}


def line(custom_id, url="/v1/chat/completions", body=CHAT, **more):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}).encode()


def run(lines, client=None, most=8, **options):
    async def feed():
        for one in lines:
            yield one + b"\n"

    async def whole():
        found = []
        tally = await Batch(client or ScriptedClient(), OpenAIOptions(**options), most).run(feed(), found.append)
        return tally, [json.loads(one) for one in found]

    return asyncio.run(whole())


def test_every_route():
    tally, found = run(
        [
            line("a"),
            line("b", "/v1/completions", {"prompt": "x", "max_tokens": 2}),
            line("c", "/v1/embeddings", {"input": ["x", "y"]}),
            line("d", "/v1/responses", {"input": "x"}),
            line("e", "/v1/messages", {"max_tokens": 5, "messages": CHAT["messages"]}),
            b"",
            line("f", "/v1/rerank", {"query": "x", "documents": ["x"]}),
        ],
        scoring="cosine",
    )
    assert (tally.answered, tally.failed) == (6, 0)
    bodies = {one["custom_id"]: one["response"]["body"] for one in found}
    assert bodies["a"]["choices"][0]["message"]["content"].startswith("Answer 0")
    assert bodies["b"]["choices"][0]["finish_reason"] == "length"
    assert len(bodies["c"]["data"]) == 2
    assert (bodies["d"]["status"], bodies["e"]["stop_reason"]) == ("completed", "max_tokens")
    assert bodies["f"]["results"][0]["index"] == 0
    assert len({one["id"] for one in found}) == 6
    assert all(one["error"] is None and one["response"]["status_code"] == 200 for one in found)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "custom_id"),
        (line("a", method="GET"), "POST"),
        (line("a", "/v1/chat/completion"), "Did you mean '/v1/chat/completions'?"),
        (line("a", body=[]), "body"),
        (line("a", body={**CHAT, "stream": True}), "stream"),
    ],
)
def test_bad_lines_hurt_nobody_else(bad, message):
    tally, found = run([line("good"), bad, line("fine")])
    assert (tally.answered, tally.failed) == (2, 1)
    (failed,) = (one for one in found if one["error"])
    assert message in failed["error"]["message"]
    assert failed["response"] is None


def test_refused_requests_have_their_status():
    _, found = run([line("a", body={**CHAT, "temperature": -1}), line("b", body={**CHAT, "model": "other"})])
    status = {one["custom_id"]: one["response"]["status_code"] for one in found}
    assert status == {"a": 400, "b": 404}
    assert found[0]["response"]["body"]["error"]["param"]


def test_bounded_and_in_the_order_of_completion():
    class Counting(ScriptedClient):
        inside = most = 0

        async def generate(self, *args, **kwargs):
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                async for delta in super().generate(*args, **kwargs):
                    yield delta
            finally:
                self.inside -= 1

    client = Counting(delay=0.001)
    tally, found = run([line(f"{number}") for number in range(40)], client, most=5)
    assert tally.answered == len({one["custom_id"] for one in found}) == 40
    assert client.most == 5


def test_a_full_queue_is_asked_again():
    class Full(ScriptedClient):
        refusals = 3

        async def generate(self, *args, **kwargs):
            if self.refusals:
                self.refusals -= 1
                raise OverloadedError("full", retry_after=0)
            async for delta in super().generate(*args, **kwargs):
                yield delta

    tally, _ = run([line("a")], Full())
    assert tally.answered == 1


@pytest.mark.slow
def test_the_command(tmp_path):
    model = tiny_llama(tmp_path / "tiny")
    body = {"messages": CHAT["messages"], "max_tokens": 4, "temperature": 0}
    lines = b"\n".join([line("a", body=body), line("b", body={**body, "max_tokens": 0})])
    done = subprocess.run(
        [sys.executable, "-m", "octavo.cli.main", "run-batch", "-i", "-", "-o", "-", "--model", str(model)],
        input=lines,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.decode().splitlines()[-1]) == (1, "1 answered, 1 failed"), done.stderr
    found = {one["custom_id"]: one["response"] for one in map(json.loads, done.stdout.splitlines())}
    assert found["a"]["body"]["usage"]["completion_tokens"] == 4
    assert found["b"]["status_code"] == 400
