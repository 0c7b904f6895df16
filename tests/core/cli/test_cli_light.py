"""Commands that only describe must stay quick: no torch, and an answer in well under a second."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "transformers", "fastapi", "tokenizers", "numpy")
CODE = """
import sys
from octavo.cli.main import main
code = main({words!r})
print(code, [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["help", "--all"],
        ["version"],
        ["plugins", "list"],
        ["plugins", "show", "builtin"],
        ["config", "schema"],
        ["config", "show"],
        ["config", "check"],
        ["serve", "--help"],
        ["chat", "--help"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    code = CODE.format(words=words, heavy=HEAVY)
    if words[-1] == "--help" and len(words) > 1:  # argparse leaves through SystemExit
        code = code.replace("code = main", "import contextlib\nwith contextlib.suppress(SystemExit): code = main")
        code = code.replace("print(code,", "print(0,")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert done.stdout


def test_importing_the_package_is_light() -> None:
    code = "import sys, octavo; octavo.SamplingParams; octavo.hookimpl; print([n for n in %r if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code % (HEAVY,)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("words", "limit"), [(["--help"], 0.3), (["plugins", "list"], 0.5)], ids=["help", "list"])
def test_the_answer_is_quick(words: list[str], limit: float) -> None:
    """Seconds of CPU, which is what the code is answerable for; the clock also counts who else is running."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "octavo.cli.main", *words], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < limit
