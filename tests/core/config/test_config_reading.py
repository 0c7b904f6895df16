"""Launch files and overrides: what is read, and what errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.config.overrides import apply, parse_overrides
from octavo.config.reading import parse, read_file
from octavo.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "launch.yaml"
    path.write_text(text)
    return path


def test_a_file_is_a_mapping(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, "model:\n  path: ./m\n")) == {"model": {"path": "./m"}}
    assert read_file(write(tmp_path, "# nothing yet\n")) == {}
    merged = read_file(write(tmp_path, "a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n"))
    assert merged["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("model: {}\nmodel: {}\n", r"launch\.yaml, line 2: key 'model' appears twice"),
        ("model:\n  path: a\n  path: b\n", r"launch\.yaml, line 3: key 'path' appears twice"),
        ("model: [\n", r"launch\.yaml, line 2"),
        ("a: b: c\n", r"launch\.yaml, line 1: mapping values are not allowed here"),
        ("- one\n- two\n", r"launch\.yaml, line 1: should be a mapping of sections"),
        ("plain text\n", "should be a mapping of sections"),
        ("1: 2\n", r"line 1: key 1 should be text"),
        ("model: !!python/object/apply:os.getcwd []\n", r"line 1: could not determine a constructor"),
        ("cache: {since: 2026-99-99}\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_names_file_and_line(tmp_path: Path, text: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        read_file(write(tmp_path, text))


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file '.*nowhere\.yaml'"):
        read_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="can't be read"):
        read_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml.*can't be read"):
        read_file(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-2E+3", -2000.0),
        ("1.5e3", 1500.0),
        ("3", 3),
        ("1e", "1e"),
        ("e5", "e5"),
        ("[a, 1]", ["a", 1]),
    ],
)
def test_numbers_are_numbers(text: str, value: Any) -> None:
    found = parse(text, "here")
    assert found == value
    assert type(found) is type(value)


def set_all(data: dict[str, Any], *texts: str) -> dict[str, Any]:
    return apply(data, parse_overrides(texts))


def test_overrides_reach_mappings_and_lists() -> None:
    data = {"cache": {"blocks": 1}, "api": [{"use": "openai"}]}
    result = set_all(data, "cache.blocks=512", "api.0.options.port=9000", "api.1.use=other", "model.name=a=b")
    assert result == {
        "cache": {"blocks": 512},
        "api": [{"use": "openai", "options": {"port": 9000}}, {"use": "other"}],
        "model": {"name": "a=b"},
    }
    assert data == {"cache": {"blocks": 1}, "api": [{"use": "openai"}]}, "the original stays as it was"


def test_values_are_yaml() -> None:
    result = set_all({}, "a.list=[x, 2]", "a.flag=true", "a.none=", "a.text='3'", "a.map={k: 1}")
    assert result == {"a": {"list": ["x", 2], "flag": True, "none": None, "text": "3", "map": {"k": 1}}}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("cache.blocks", "should look like 'section.key=value'"),
        ("cache..blocks=1", "should look like"),
        ("=1", "should look like"),
        ("cache.blocks=[", r"override 'cache\.blocks=\['"),
        ("api.2.use=x", r"api\.2\.use: api is a list of 1: write a number from 0 to 1 for '2'"),
        ("api.first.use=x", "api is a list of 1"),
        ("cache.blocks.more=1", r"cache\.blocks\.more: can't be set: cache\.blocks is 1, not a mapping"),
    ],
)
def test_a_wrong_override_is_named(text: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        set_all({"cache": {"blocks": 1}, "api": [{"use": "openai"}]}, text)
