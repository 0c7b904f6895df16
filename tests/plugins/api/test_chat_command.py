"""``octavo chat`` against a server that answers by script."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from octavo.cli import chat
from octavo.cli.main import main
from octavo.cli.talkers import ServerTalker
from octavo.errors import OctavoError, RequestError
from octavo.testing.client import ScriptedClient


def talk(monkeypatch, capsys, url, lines, *arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code = main(["chat", "--url", url, *arguments])
    return code, *capsys.readouterr()


def messages_of(client):
    """The conversation of each call, as the scripted template writes it."""
    return [bytes(call.prompt[1:]).decode().removesuffix("assistant: ").splitlines() for call in client.calls]


def test_conversation(monkeypatch, capsys, make_live):
    live = make_live(ScriptedClient(answer=lambda prompt, index: "Yes, sir."))
    code, out, err = talk(
        monkeypatch, capsys, live.url, "one\n\n  two\n/system Be kind.\nthree\n/reset\nfour\n/quit\nnever\n"
    )
    assert (code, out, err) == (0, "Yes, sir.\n" * 4, "")
    yes = "assistant: Yes, sir."
    assert messages_of(live.client) == [
        ["user: one"],
        ["user: one", yes, "user: two"],
        [
            "system: Be kind.",
            "user: one",
            "assistant: Yes, sir.",
            "user: two",
            "assistant: Yes, sir.",
            "user: three",
        ],
        ["system: Be kind.", "user: four"],
    ]


def test_settings_reach_the_server(monkeypatch, capsys, make_live, tmp_path):
    live = make_live(api_key="k1")
    key = tmp_path / "key"
    key.write_text("k1\n")
    arguments = ["--temperature", "0.5", "--max-tokens", "3", "--seed", "4", "--system", "S", "--model", "scripted"]
    code, out, _ = talk(monkeypatch, capsys, live.url + "/v1", "x\n", *arguments, "--api-key-file", str(key))
    assert (code, out) == (0, "Ans\n")
    params = live.client.calls[0].params
    assert (params.temperature, params.max_tokens, params.seed) == (0.5, 3, 4)
    assert messages_of(live.client) == [["system: S", "user: x"]]


def test_refusals_do_not_end_the_conversation(monkeypatch, capsys, make_live):
    live = make_live(ScriptedClient(max_length=40, answer=lambda prompt, index: "ok"))
    code, out, err = talk(monkeypatch, capsys, live.url, f"{'x' * 100}\n/nonsense\nshort\n")
    assert (code, out) == (0, "ok\n")
    assert "maximum context length" in err
    assert "no command /nonsense" in err
    assert messages_of(live.client)[-1] == ["user: short"]


def test_error_in_mid_answer(make_live):
    live = make_live(ScriptedClient(failure=RequestError("broken"), fail_after=2))
    talker = ServerTalker(live.url, None, None, {})
    answer = talker.answer([{"role": "user", "content": "x"}])
    pieces = []
    with pytest.raises(RequestError, match="broken"):
        pieces.extend(answer)
    live.client.failure = None
    assert "".join(talker.answer([{"role": "user", "content": "x"}])).startswith("Answer 0")


def test_closing_an_answer_aborts_it(make_live):
    live = make_live(ScriptedClient(delay=0.02, answer=lambda prompt, index: "x" * 3000))
    answer = ServerTalker(live.url, None, None, {}).answer([{"role": "user", "content": "x"}])
    assert [next(answer), next(answer)] == ["", "xxx"]
    answer.close()
    deadline = time.monotonic() + 5
    while not live.client.aborted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", ""])
def test_bad_urls(url):
    with pytest.raises(OctavoError, match="--url should look like"):
        ServerTalker(url, None, None, {})


def test_nobody_listens(monkeypatch, capsys):
    code, out, err = talk(monkeypatch, capsys, "http://127.0.0.1:9", "x\n")
    assert (code, out) == (0, "")
    assert "no answer from the model at http://127.0.0.1:9" in err


def test_arguments_that_contradict(capsys):
    assert main(["chat", "--url", "http://127.0.0.1:9", "--set", "cache.blocks=9"]) == 2
    assert main(["chat", "--api-key-file", "x"]) == 2
    assert main(["chat", "--url", "http://127.0.0.1:9", "--api-key-file", "/nowhere"]) == 2
    assert capsys.readouterr().err.count("octavo: error:") == 3


def test_terminal_control_characters_are_left_out():
    assert chat._printable("a\x1b[31mb\x07\n\tc\x9bd\x7fé🦆") == "a[31mb\n\tcdé🦆"


def test_every_option_has_help():
    parser = argparse.ArgumentParser()
    chat.configure(parser)
    assert all(action.help for action in parser._actions)


def test_ctrl_c_stops_the_answer_and_not_the_program(make_live):
    live = make_live(ScriptedClient(delay=0.02, answer=lambda prompt, index: "wait " * 600))
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo.cli.main", "chat", "--url", live.url],
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = ""

    def wait_for(text, interrupt=False):
        """A signal that comes just before the program waits for input shows only after the next one."""
        nonlocal shown
        deadline = time.monotonic() + 30
        while text not in shown:
            assert time.monotonic() < deadline, shown
            if interrupt:
                process.send_signal(signal.SIGINT)
            if select.select([master], [], [], 0.5)[0]:
                shown += os.read(master, 4096).decode()
        shown = shown.partition(text)[2]

    try:
        wait_for("> ")
        os.write(master, b"go\n")
        wait_for("wait wait")
        process.send_signal(signal.SIGINT)
        wait_for("…")
        wait_for("> ")
        live.client.answer = lambda prompt, index: "done."
        os.write(master, b"again\n")
        wait_for("done.")
        wait_for("> ")
        wait_for("/quit leaves", interrupt=True)
        for _ in range(10):  # a late signal may have eaten the line
            os.write(master, b"/quit\n")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
                break
        assert process.returncode == 0
        assert live.client.aborted
    finally:
        process.kill()
        process.wait()
        os.close(master)
