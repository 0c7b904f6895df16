"""What talks to a server, in the pages and in the examples, against a served model."""

from __future__ import annotations

import shutil
import subprocess


def test_with_a_server(page, read, server, desk):
    """Python that is marked ``server``, and every ``curl``, against a served model."""
    blocks = [block for block in read(page) if block.mark == "server"]
    for block in blocks:
        text = block.text.replace("http://127.0.0.1:8000", server)
        if block.language == "python":
            exec(compile("\n" * block.line + text, block.page, "exec"), {"__name__": "__main__"})
        elif shutil.which("curl"):
            done = subprocess.run(text, shell=True, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert '"error"' not in done.stdout, done.stdout
            assert done.stdout


def test_openai_client(example, server, capsys):
    example("openai_client").main(["--url", f"{server}/v1", "--max-tokens", "6"])
    assert capsys.readouterr().out.startswith("smollm2-135m-instruct: ")
