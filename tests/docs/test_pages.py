"""README and docs: every block of code runs or is valid, every link leads somewhere."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from octavo.cli.main import COMMANDS
from octavo.config.compose import load_launch
from octavo.plugins.host import PluginHost
from octavo.testing.sandbox import write_distribution

LANGUAGES = {"python", "yaml", "toml", "bash", "text", "mermaid", "json"}
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
MACHINE = re.compile(r"(?<![\w.])/(work|tmp|home|root|Users|venv|opt|mnt|var|usr/local)(/|\b)")


def test_blocks(page, read, root, desk):
    """In the page's order: files are written, Python runs, YAML is loaded."""
    blocks = read(page)
    assert {block.language for block in blocks} <= LANGUAGES, "every block names its language"
    if page == "docs/hooks.md":
        return  # example by example: test_hooks_page.py
    if page.startswith("tests/sample_plugin/"):
        _install(shutil.copytree(root / page.rpartition("/")[0], desk / "sample"), desk)
    namespace = {"__name__": "__main__"}
    for block in blocks:
        if "." in block.mark:
            _write(desk, block)
        if block.language == "yaml":
            load_launch(block.mark or _write(desk, block, "block.yaml"))
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "python" and not block.mark:
            block.run(namespace)
        elif block.language == "python" and block.mark == "server":
            compile(block.text, str(block), "exec")  # test_served_pages.py runs it
        elif block.language == "python":
            assert block.mark.endswith(".py"), f"{block}: what is {block.mark!r}?"
    tests = list(desk.glob("*/tests/test_*.py"))
    if tests:
        _run_tests(tests)


def _write(desk: Path, block, name: str = "") -> str:
    """The block as a file. A ``pyproject.toml`` makes its folder an installed package."""
    file = desk / (name or block.mark)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.text)
    if file.name == "pyproject.toml":
        _install(file.parent, file.parent)
    return str(file)


def _install(source: Path, site: Path) -> None:
    """Make the package in ``source`` an installed one: its entry points are written into ``site``."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    package = source / project["name"].replace("-", "_")
    if not package.exists():  # a page need not show an empty file
        package.mkdir()
        (package / "__init__.py").touch()
    plugins = project["entry-points"]["octavo.plugins"]
    write_distribution(site, project["name"], plugins, {}, project["version"])
    sys.path[:0] = {str(source), str(site)}  # put back by `_unchanged_path`
    importlib.invalidate_caches()


def _run_tests(files):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout


def test_commands(page, read):
    """Every `octavo …` line has a subcommand and arguments that exist."""
    added = PluginHost.load().commands()
    for block in read(page):
        if block.language != "bash":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                if Path(word).name == "octavo" and words[place + 1 : place + 2] not in ([], ["--help"], ["help"]):
                    _parse(words[place + 1], words[place + 2 :], added)


def _parse(name, rest, added):
    module = importlib.import_module(COMMANDS[name][0]) if name in COMMANDS else added[name]
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.configure(parser)
    parser.parse_args(rest)


def test_links(page, root):
    """To files that are there, and to headings that are there. Addresses elsewhere are not looked at."""
    for target in LINK.findall(_prose(root / page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (root / page).parent / path if path else root / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in _anchors(file), f"{page}: {target}"


def test_no_page_is_forgotten(root):
    """From the README one comes to every page of the documentation."""
    seen, todo = set(), [root / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page.resolve())
        for target in LINK.findall(_prose(page)):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file not in seen:
                todo.append(file)
    assert {path.resolve() for path in (root / "docs").glob("*.md")} <= seen


def test_no_machine_shows_through(page, root):
    found = MACHINE.search((root / page).read_text())
    assert found is None, f"{page} mentions {found[0]}"


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(autouse=True)
def _unchanged_path():
    before = list(sys.path)
    yield
    sys.path[:] = before
