"""``octavo serve`` and ``octavo chat`` as users run them: processes, sockets, signals."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from octavo.testing.tiny import tiny_llama

OCTAVO = [sys.executable, "-m", "octavo.cli.main"]
HELLO = [{"role": "user", "content": "Hello"}]
START_SECONDS = 120  # other tests may keep the machine busy


class Server:
    """A served model in a process group of its own. ``log`` is what it wrote so far."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = ""
        self.process = subprocess.Popen(
            [*OCTAVO, "serve", "--port", str(self.port), "--set", "model.threads=1", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line

    def wait_ready(self) -> None:
        until(lambda: self.status("/ready") == 200 or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.log

    def status(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=5).status_code
        except httpx.HTTPError:
            return 0

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def engine_pids(self) -> list[int]:
        return [pid for pid in group_members(self.process.pid) if pid != self.process.pid]

    def finish(self, number: int = signal.SIGTERM, seconds: float = 15) -> int:
        """Send a signal; the exit code. Nobody of the process group is left afterwards."""
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        until(lambda: not group_members(self.process.pid), 5)
        return code

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()


def group_members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, member = entry.read_text().rpartition(")")[2].split()[:3]
            if int(member) == group and state != "Z":
                found.append(int(entry.parent.name))
    return found


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture
def start():
    """``start("--model", …)``; gone at the end of the test."""
    servers = []

    def begin(*arguments: str) -> Server:
        servers.append(Server(*arguments))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def tiny(model):
    """One server for the tests that only ask."""
    server = Server("--model", model, "--set", "model.max_length=256", "--set", "cache.blocks=256")
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def test_plain_and_streamed_answers_agree(tiny):
    fields = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 24}
    with tiny.openai() as client:
        plain = client.chat.completions.create(**fields)
        chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert plain.choices[0].message.content == streamed != ""
    assert plain.usage.completion_tokens == chunks[-1].usage.completion_tokens
    assert plain.choices[0].finish_reason in ("length", "stop")


def test_many_at_once_get_what_each_gets_alone(tiny):
    prompts = [[10 + step, 11, 12, 13 + step] for step in range(6)]

    def ask(client, prompt):
        return client.completions.create(
            model="tiny", prompt=prompt, temperature=0, max_tokens=12, extra_body={"ignore_eos": True}
        )

    with tiny.openai() as client:
        alone = [ask(client, prompt).choices[0].text for prompt in prompts]
        together = [choice.text for choice in ask(client, prompts).choices]
        seeded = [
            client.completions.create(model="tiny", prompt=prompts[0], seed=7, n=2, max_tokens=8).choices
            for _ in "ab"
        ]
    assert alone == together
    assert [choice.text for choice in seeded[0]] == [choice.text for choice in seeded[1]]


def test_logprobs(tiny):
    with tiny.openai() as client:
        answer = client.completions.create(
            model="tiny", prompt=[5, 6, 7], echo=True, logprobs=3, max_tokens=2, temperature=0
        ).choices[0]
        chat = client.chat.completions.create(
            model="tiny", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=3, temperature=0
        ).choices[0]
    logprobs = answer.logprobs
    assert len(logprobs.tokens) == 5
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert all(3 <= len(top) <= 4 for top in logprobs.top_logprobs[1:])
    for entry in chat.logprobs.content:
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"messages": HELLO, "max_tokens": 10_000}, "max_tokens"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 3000}]}, None),
        ("completions", {"prompt": [99_999]}, "prompt"),
        ("completions", {"prompt": ""}, None),
        ("completions", {"prompt": "x", "allowed_token_ids": [99_999]}, "allowed_token_ids"),
        ("completions", {"prompt": "x", "bad_words": [""]}, "bad_words"),
    ],
)
def test_what_only_the_engine_can_refuse(tiny, path, fields, param):
    response = httpx.post(f"{tiny.url}/v1/{path}", json=fields, timeout=30)
    if path == "completions" and fields["prompt"] == "" and response.status_code == 200:
        pytest.skip("this tokenizer begins even an empty text with a token")
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert param is None or error["param"] == param
    assert tiny.status("/health") == 200


def test_hanging_up_frees_the_engine(tiny):
    body = {"prompt": [4, 5, 6], "max_tokens": 240, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{tiny.url}/v1/completions", json=body, timeout=30) as response:
        assert next(response.iter_bytes())
    until(lambda: 'num_requests_running{model_name="tiny"} 0.0' in httpx.get(f"{tiny.url}/metrics").text, 10)


def test_first_line_says_where_and_how(tiny):
    assert re.search(rf"tiny is ready at {tiny.url} \(openai\) after \d+\.\d s", tiny.log)
    command = re.search(r"try: (curl .*)", tiny.log).group(1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"]


def test_chat_command_against_the_server(tiny):
    done = subprocess.run(
        [*OCTAVO, "chat", "--url", tiny.url, "--temperature", "0", "--max-tokens", "8"],
        input="Hello\n/reset\nHello\n/quit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    with tiny.openai() as client:
        answer = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=8)
    visible = "".join(char for char in answer.choices[0].message.content if char.isprintable() or char in "\n\t")
    assert done.stdout == f"{visible}\n" * 2


def test_port_taken_is_said_before_anything_is_loaded(tiny):
    began = time.monotonic()
    done = subprocess.run(
        [*OCTAVO, "serve", "--port", str(tiny.port), "--model", "/nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"port {tiny.port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "/nowhere"], "/nowhere"),
        (["--set", "api=[]"], "nothing to serve"),
        (["--set", "api.0.options.prt=1"], "api.0.options"),
        (["--set", "api.0.options.api_key_file=/nowhere"], "/nowhere"),
        (["--set", "plugins.disable=[openai]"], "disabled"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["/no/such/file.yaml"], "/no/such/file.yaml"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(start, model, arguments, words):
    server = start(*([] if "--model" in arguments else ["--model", model]), *arguments)
    assert server.process.wait(START_SECONDS) == 2
    server.close()
    assert words in server.log
    assert "Traceback" not in server.log
    assert group_members(server.process.pid) == []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_two_listeners(start, model):
    second = free_port()
    server = start("--model", model, "--set", f"api.1={{use: openai, options: {{port: {second}, api_key: k}}}}")
    server.wait_ready()
    assert server.status("/v1/models") == 200
    other = f"http://127.0.0.1:{second}/v1/models"
    assert httpx.get(other).status_code == 401
    assert httpx.get(other, headers={"authorization": "Bearer k"}).json()["data"][0]["id"] == "tiny"
    assert server.finish() == 0


def test_one_route_twice_on_one_listener_is_refused(start, model):
    server = start("--model", model, "--set", "api.1.use=openai", "--set", "api.1.options.port=0", "--port", "0")
    assert server.process.wait(START_SECONDS) == 2
    server.close()
    assert "both answer POST /v1/chat/completions" in server.log
    assert group_members(server.process.pid) == []


@pytest.mark.slow
def test_drain_lets_a_stream_finish_and_refuses_new_requests(start, model):
    server = start("--model", model)
    server.wait_ready()
    body = {"prompt": [4, 5, 6], "max_tokens": 480, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.status("/ready") == 503, 5)
        refused = httpx.post(f"{server.url}/v1/completions", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "shutting down" in refused.json()["error"]["message"]
        assert server.status("/health") == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.process.wait(15) == 0
    until(lambda: not group_members(server.process.pid), 5)


@pytest.mark.slow
@pytest.mark.parametrize("drain", ["0.2", "60"])
def test_a_stream_that_may_not_finish_is_told(start, model, drain):
    server = start("--model", model, "--drain", drain, "--set", "model.max_length=500")
    server.wait_ready()
    body = {"prompt": [4, 5, 6], "n": 8, "max_tokens": 490, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        if drain == "60":  # the second one does not wait
            until(lambda: server.status("/ready") == 503, 5)
            server.process.send_signal(signal.SIGINT)
        events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]"
    assert "stopped" in json.loads(events[-2].removeprefix("data: "))["error"]["message"]
    assert server.process.wait(15) == 0
    until(lambda: not group_members(server.process.pid), 5)


@pytest.mark.slow
def test_signals_while_loading(start, model):
    for wait in (0.3, 2.0):
        server = start("--model", model)
        time.sleep(wait)
        code = server.finish()
        assert code in (0, -signal.SIGTERM), server.log  # -15: Python itself had not begun
        assert "Traceback" not in server.log


@pytest.mark.slow
def test_killed_engine_ends_the_server(start, model):
    server = start("--model", model)
    server.wait_ready()
    (engine,) = server.engine_pids()
    os.kill(engine, signal.SIGKILL)
    assert server.process.wait(20) == 1
    assert "the engine is dead" in server.log


@pytest.mark.slow
def test_killed_server_leaves_no_engine(start, model):
    server = start("--model", model)
    server.wait_ready()
    assert server.engine_pids()
    server.process.kill()
    until(lambda: not group_members(server.process.pid), 10)


@pytest.mark.model
@pytest.mark.slow
def test_bundled_model_knows_the_capital_of_france(start):
    server = start()
    server.wait_ready()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with server.openai() as client:
        (model,) = client.models.list().data
        assert model.id == "smollm2-135m-instruct"
        fields = {"model": model.id, "messages": question, "temperature": 0, "max_tokens": 32}
        answer = client.chat.completions.create(**fields)
        assert "Paris" in answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
        chunks = client.chat.completions.create(**fields, stream=True)
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
        )
        assert client.chat.completions.create(**fields).usage.prompt_tokens_details.cached_tokens >= 16
    assert server.finish() == 0


@pytest.mark.model
@pytest.mark.slow
def test_chat_command_with_the_bundled_model():
    done = subprocess.run(
        [*OCTAVO, "chat", "--temperature", "0", "--max-tokens", "24"],
        input="What is the capital of France?\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Paris" in done.stdout


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_of_our_own_engine(model):
    master, slave = pty.openpty()
    command = [*OCTAVO, "chat", "--model", model, "--set", "model.threads=1", "--temperature", "0"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    shown = ""

    def wait_for(text):
        nonlocal shown
        deadline = time.monotonic() + START_SECONDS
        while text not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 0.5)[0]:
                shown += os.read(master, 4096).decode(errors="replace")
        shown = shown.partition(text)[2]

    try:
        wait_for("> ")
        for _ in range(2):
            os.write(master, b"Hello\n")
            wait_for("Hello\r\n")
            until(lambda: select.select([master], [], [], 0.5)[0], 60)
            process.send_signal(signal.SIGINT)
            wait_for("…")
            wait_for("> ")
        os.write(master, b"/quit\n")
        assert process.wait(20) == 0
        until(lambda: not group_members(process.pid), 5)
    finally:
        process.kill()
        process.wait()
        os.close(master)
