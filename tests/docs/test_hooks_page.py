"""docs/hooks.md: every hook with its exact signature and an example that runs and is really called."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import threading
from pathlib import Path

import pytest

from octavo import hookspecs
from octavo.plugins.checks import hook_names

PAGE = "docs/hooks.md"
HOOKS = hook_names(hookspecs)


@pytest.fixture(scope="module")
def sections(read, root):
    """By heading, the blocks below it; the blocks before the first hook under the empty heading."""
    headings = {
        number: line.removeprefix("## ")
        for number, line in enumerate((root / PAGE).read_text().splitlines(), 1)
        if line.startswith("## ")
    }
    found = {"": [], **{heading: [] for heading in headings.values()}}
    for block in read(PAGE):
        above = [heading for number, heading in headings.items() if number < block.line]
        found[above[-1] if above else ""].append(block)
    return found


def test_exactly_the_hooks_are_described(sections):
    assert [heading for heading in sections if heading] == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_signature(sections, hook):
    (block,) = [block for block in sections[hook] if block.mark == "signature"]
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert block.text == f"def {hook}{signature}\n"


@pytest.mark.parametrize("hook", HOOKS)
def test_kind(root, hook):
    """Contribute hooks answer with records, decide hooks with the first name, observe hooks with nothing."""
    text = (root / PAGE).read_text()
    section = text.partition(f"\n## {hook}\n")[2].partition("\n## ")[0]
    spec = getattr(hookspecs, hook)
    first = spec.octavo_spec["firstresult"]
    kind = "Decide" if first else "Contribute" if "Iterable" in spec.__annotations__["return"] else "Observe"
    if hook == "octavo_commands":
        kind = "Contribute"
    assert re.findall(r"^\*(\w+)\*", section, re.MULTILINE) == [kind]
    assert spec.__doc__.startswith(kind)


@pytest.mark.parametrize("hook", HOOKS)
def test_example_runs_and_the_hook_is_called(sections, desk, capsys, hook):
    example = [block for block in sections[hook] if block.language == "python" and not block.mark]
    assert example
    with calls_into("hooks.md") as called:
        namespace = {"__name__": "__main__"}
        for block in [*sections[""], *example]:
            block.run(namespace)
    assert hook in called
    # `print(…)  # this`, and a last line `pass  # this` where a hook prints.
    said = [match[1] for block in example for match in re.finditer(r"(?:print\(.*\)|pass)  # (.+)", block.text)]
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line in said] == said


@contextlib.contextmanager
def calls_into(file):
    """The names of the functions of ``file`` that are called meanwhile, in any thread."""
    called = set()

    def note(frame, event, argument):
        if event == "call" and Path(frame.f_code.co_filename).name == file:
            called.add(frame.f_code.co_name)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
