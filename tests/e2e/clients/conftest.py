"""A server for clients: one that runs already (``--server URL``), or a tiny model served for the session."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", default=None, help="URL of a server that runs already")


def _up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = request.config.getoption("--server", default=None)
    if given is not None:
        yield given.rstrip("/")
        return
    from octavo.testing.tiny import tiny_llama

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = tiny_llama(tmp_path_factory.mktemp("clients") / "tiny", max_length=1024)
    settings = ["model.threads=1", "cache.blocks=512", "api=[{use: openai, options: {scoring: cosine}}]"]
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo.cli.main", "serve", "--port", str(port), "--model", str(model)]
        + [word for setting in settings for word in ("--set", setting)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _up(address):
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def model(url: str) -> str:
    import json

    with urllib.request.urlopen(url + "/v1/models", timeout=30) as answer:
        name: str = json.load(answer)["data"][0]["id"]
        return name
