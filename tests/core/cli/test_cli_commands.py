"""The ``octavo`` command as a user meets it: output, exit codes, one line for each mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.cli import main as cli
from octavo.plugins import sources
from octavo.testing.sandbox import write_distribution
from octavo.testing.tiny import tiny_llama

PLUGIN = """
    from typing import Literal
    from pydantic import Field
    from octavo.config.schema import Section
    from octavo.hookspecs import hookimpl
    from octavo.records import AttentionRecord

    class Options(Section):
        splits: int = Field(default=8, description="Parts of a long sequence.")
        mode: Literal["fast", "exact"] = "fast"
        path: str

    @hookimpl
    def octavo_attention_backends():
        yield AttentionRecord(
            name="paged", summary="Paged.", options=Options, build=object, supports=lambda ctx: "needs a moon"
        )

    def configure(parser):
        parser.add_argument("--times", type=int, default=1)

    def run(args):
        print("tuned " * args.times)
        return 7

    @hookimpl
    def octavo_commands(app):
        app.add("tune", "Tune the kernels.", configure, run)
"""


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Only the plugins of this test: ``paged``, which works, and ``lunar``, which does not."""
    modules = {"sandbox_paged": PLUGIN, "sandbox_lunar": "raise ImportError('no moon')"}
    write_distribution(tmp_path, "sandbox", {"paged": "sandbox_paged", "lunar": "sandbox_lunar"}, modules, "3.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    everything = sources.installed()
    mine = [source for source in everything if source.distribution == "sandbox"]
    monkeypatch.setattr(sources, "installed", lambda: mine)
    yield tmp_path
    for module in modules:
        sys.modules.pop(module, None)


def octavo(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_plugins_list(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = octavo(capsys, "plugins", "list")
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0
    assert "loaded" in rows["builtin"]
    assert "architecture: LlamaForCausalLM" in rows["builtin"]
    assert "sandbox 3.1" in rows["paged"]
    assert "attention: paged; commands" in rows["paged"]
    assert "failed" in rows["lunar"]
    assert "ImportError: no moon" in rows["lunar"]


def test_plugins_list_as_json(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = octavo(capsys, "plugins", "list", "--json")
    plugins = {item["name"]: item for item in json.loads(out)}
    assert list(plugins) == ["builtin", "lunar", "paged"]
    assert plugins["lunar"]["status"] == "failed"
    assert plugins["paged"]["contributes"] == [
        {
            "slot": "attention",
            "name": "paged",
            "summary": "Paged.",
            "supports": "not evaluated: depends on the model",
            "automatic": True,
            "rank": 0,
        }
    ]


def test_plugins_list_follows_a_launch_file(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sandbox / "launch.yaml").write_text("plugins: {disable: [paged]}\n")
    _, out, _ = octavo(capsys, "plugins", "list", "--config", str(sandbox / "launch.yaml"), "--json")
    assert {item["name"]: item["status"] for item in json.loads(out)}["paged"] == "disabled"
    code, _, err = octavo(capsys, "plugins", "list", "--set", "plugins.enable=[lunar]")
    assert code == 2
    assert err == "octavo: error: plugin 'lunar' (sandbox 3.1) can't be loaded: ImportError: no moon\n"


def test_plugins_show(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = octavo(capsys, "plugins", "show", "paged")
    assert code == 0
    assert "  splits (integer, default 8): Parts of a long sequence." in out
    assert "  mode ('fast' or 'exact', default 'fast'): no description" in out
    assert "  path (string, required): no description" in out
    _, out, _ = octavo(capsys, "plugins", "show", "paged", "--json")
    assert json.loads(out)["contributes"][0]["options"]["properties"]["splits"]["default"] == 8
    code, _, err = octavo(capsys, "plugins", "show", "pagde")
    assert code == 2
    assert "Did you mean 'paged'?" in err


def test_config_check_show_and_schema(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch = sandbox / "launch.yaml"
    launch.write_text("attention: {use: paged, options: {path: /x}}\n")
    assert octavo(capsys, "config", "check", str(launch))[:2] == (0, f"{launch}: OK\n")
    code, out, _ = octavo(capsys, "config", "show", str(launch), "--set", "cache.blocks=9")
    shown = yaml.safe_load(out)
    assert code == 0
    assert shown["attention"]["options"] == {"splits": 8, "mode": "fast", "path": "/x"}
    assert (shown["cache"]["blocks"], shown["scheduler"]["use"]) == (9, "fcfs")
    (sandbox / "again.yaml").write_text(out)
    assert octavo(capsys, "config", "show", str(sandbox / "again.yaml"))[1] == out, (
        "what is shown can be read again"
    )
    _, out, _ = octavo(capsys, "config", "schema")
    assert json.loads(out)["$defs"]["AttentionSection"]["properties"]["use"]["enum"] == ["auto", "torch", "paged"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("config", "check", "nowhere.yaml"), "there is no configuration file 'nowhere.yaml'."),
        (("config", "check", "--set", "cache.blok=1"), "cache.blok: unknown key. Did you mean 'blocks'?"),
        (("config", "check", "--set", "cache"), "override 'cache' should look like 'section.key=value'."),
        (("explain", "--set", "model.path=/nowhere"), "/nowhere: no such folder or file."),
        (("plugns",), "there is no command 'plugns'. Did you mean 'plugins'? `octavo help --all` lists all."),
        (("--colour",), "there is no option '--colour'; `octavo --help` lists them."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    sandbox: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str
) -> None:
    code, out, err = octavo(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"octavo: error: {expected}")
    assert err.count("\n") == 1


def test_traceback_is_shown_where_asked_for(sandbox: Path) -> None:
    with pytest.raises(Exception, match="no configuration file"):
        cli.main(["--traceback", "config", "check", "nowhere.yaml"])


def test_wrong_arguments_are_argparses_business(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["plugins", "lst"])
    assert caught.value.code == 2
    assert "usage: octavo plugins" in capsys.readouterr().err


def test_commands_of_plugins(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert octavo(capsys, "tune", "--times", "2") == (7, "tuned tuned \n", "")
    assert "tune  Tune the kernels. (plugin 'paged' (sandbox 3.1))" in octavo(capsys, "help", "--all")[1]
    assert "tune" not in octavo(capsys, "--help")[1]


def test_help_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = octavo(capsys, "--help")
    assert code == 0
    assert all(f"\n  {name}" in out for name in cli.COMMANDS)
    assert octavo(capsys) == (2, out, "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from octavo import __version__

    versions = json.loads(octavo(capsys, "version", "--json")[1])
    assert versions["octavo"] == __version__
    assert versions["pydantic"][0].isdigit()
    assert octavo(capsys, "--version")[1] == octavo(capsys, "version")[1]


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: Any) -> int:
        raise KeyboardInterrupt

    from octavo.cli import version

    monkeypatch.setattr(version, "run", interrupt)
    assert octavo(capsys, "version") == (130, "", "")


def test_explain_a_tiny_model(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_llama(sandbox / "tiny", layers=1)
    words = ("explain", "--set", f"model.path={path}", "--set", "model.device=cpu", "--set", "cache.blocks=8")
    code, out, _ = octavo(capsys, *words)
    assert code == 0
    assert "attention: torch (the only one that works here, plugin 'builtin'" in out
    assert "    x paged: needs a moon" in out
    assert "'lunar' (sandbox 3.1): failed, ImportError: no moon" in out
    _, out, _ = octavo(capsys, *words, "--json")
    assert json.loads(out)["memory"]["num_blocks"] == 8
