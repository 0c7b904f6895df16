"""docs/configuration.md lists exactly the keys there are, with their defaults."""

from __future__ import annotations

import re
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from octavo.config.launch import LaunchConfig
from octavo.plugins.host import PluginHost
from octavo.plugins.slots import SLOTS

PAGE = "docs/configuration.md"
ROW = re.compile(r"\| `(\w+)` \| (.+?) \| (.+) \|")


@pytest.fixture(scope="module")
def tables(root):
    """By heading of the second level, the rows of its table: key to (default as YAML, meaning)."""
    found, heading = {}, None
    for line in (root / PAGE).read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
            found[heading] = {}
        elif line.startswith("| `"):
            key, default, meaning = ROW.fullmatch(line).groups()
            assert key not in found[heading], f"{heading}.{key} is listed twice"
            found[heading][key] = (default, meaning)
    return found


def sections():
    for name, field in LaunchConfig.model_fields.items():
        inner = (get_args(field.annotation) or (field.annotation,))[0]
        assert issubclass(inner, BaseModel), name
        yield name, inner


def options():
    """Of the records that Octavo's own plugins contribute, those with anything to set."""
    host = PluginHost.load()
    found = [
        (slot.key, item.record.name, item.record.options)
        for slot in SLOTS
        for item in host.contributions(slot.key)
        if item.distribution == "octavo" and item.record.options.model_fields
    ]
    names = [name for _, name, _ in found]
    for slot, name, model in found:
        yield (name if names.count(name) == 1 else f"{name} ({slot})"), model


ALL = {**dict(sections()), **dict(options())}


def test_exactly_these_sections_are_described(tables):
    assert list(tables)[: len(dict(sections()))] == list(dict(sections()))
    assert set(tables) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_keys_and_defaults(tables, name):
    described = {}
    for key, (default, _) in tables[name].items():
        written = re.fullmatch(r"`(.+)`", default)
        described[key] = yaml.safe_load(written[1]) if written else default
    fields = ALL[name].model_fields
    assert described == {
        key: "required" if field.is_required() else to_jsonable_python(field.get_default(call_default_factory=True))
        for key, field in fields.items()
    }
    assert list(described) == list(fields), "in the order of the schema"
    assert all(meaning.endswith(".") for _, meaning in tables[name].values())
