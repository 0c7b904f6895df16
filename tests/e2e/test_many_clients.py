"""Five hundred streams at once on a simulated engine: a third of the clients vanish, some hardly read.

The others get exact answers, and nothing is left behind. Also what a streamed token costs the API process.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from octavo.testing.tiny import tiny_llama

pytestmark = pytest.mark.slow
CLIENTS, TOKENS, PROMPTS = 500, 60, 10
PLUGIN = Path(__file__).parents[1] / "core" / "engine" / "simulated_plugin.py"


class Server:
    """``octavo serve`` with an engine that takes no time."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {
            "model.path": str(model),
            "plugins.load": json.dumps([str(PLUGIN)]),
            "executor.use": "scripted",
            "cache.blocks": "4000",
            "scheduler.max_sequences": "256",
        }
        given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "octavo.cli.main", "serve", "--port", str(self.port), *given],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(self.url + "/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.05)

    def figure(self, name: str) -> float:
        text = httpx.get(self.url + "/metrics", timeout=30).text
        return sum(map(float, re.findall(rf"^octavo:{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident bytes of the API process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tiny_llama(tmp_path_factory.mktemp("crowd") / "tiny"))
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def body(number: int, stream: bool) -> bytes:
    return json.dumps(
        {
            "prompt": f"Prompt number {number % PROMPTS}",
            "max_tokens": TOKENS,
            "seed": number % PROMPTS,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "stream": stream,
        }
    ).encode()


async def client(server: Server, number: int, kind: str) -> str | None:
    """The text of one stream; ``None`` for a client that hangs up."""
    sock = socket.socket()
    sock.setblocking(False)
    if kind == "slow":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    data = body(number, True)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    received = b""
    try:
        while chunk := await reader.read(256 if kind == "slow" else 65536):
            received += chunk
            if kind == "vanishing" and b"data:" in received:
                return None
            if kind == "slow":
                await asyncio.sleep(0.01)
    finally:
        writer.close()
    return text_of(received)


def text_of(received: bytes) -> str:
    """The events' texts; HTTP's chunk lengths stand on lines of their own."""
    payload = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", b"\r\n" + received.partition(b"\r\n\r\n")[2])
    events = [json.loads(event) for event in re.findall(rb"data: (\{.*\})", payload)]
    assert b"data: [DONE]" in payload
    return "".join(choice["text"] for event in events for choice in event["choices"])


async def crowd(server: Server, kinds: list[str]) -> list[str | None]:
    return await asyncio.gather(*(client(server, number, kind) for number, kind in enumerate(kinds)))


def test_the_crowd(server):
    headers = {"content-type": "application/json"}
    want = []
    for number in range(PROMPTS):
        answer = httpx.post(
            f"{server.url}/v1/completions", content=body(number, False), headers=headers, timeout=60
        )
        want.append(answer.json()["choices"][0]["text"])
    assert len(set(want)) == PROMPTS
    asyncio.run(crowd(server, ["patient"] * CLIENTS))  # what a first crowd leaves in memory stays once
    memory, files = server.memory(), server.files()
    kinds = [
        ("vanishing", "patient", "slow" if number % 30 == 2 else "patient")[number % 3] for number in range(CLIENTS)
    ]
    for _ in range(2):
        for number, text in enumerate(asyncio.run(crowd(server, kinds))):
            assert text == (None if kinds[number] == "vanishing" else want[number % PROMPTS]), number
    deadline = time.monotonic() + 20
    while any(
        server.figure(name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server.files() <= files + 5
    assert server.memory() < memory + (40 << 20)


def test_what_a_streamed_token_costs(server):
    """In seconds of the API process's own CPU time, so that a busy machine does not matter."""
    before, tokens = server.cpu_seconds(), server.figure("generation_tokens_total")
    asyncio.run(crowd(server, ["patient"] * 200))
    time.sleep(0.5)  # until the engine has reported
    spent, made = server.cpu_seconds() - before, server.figure("generation_tokens_total") - tokens
    assert made == 200 * TOKENS
    assert made / spent > 5000
