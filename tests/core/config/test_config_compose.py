"""The second pass: sections against the plugins that are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from pydantic import Field, SecretStr

from octavo.config.compose import compose, load_launch
from octavo.config.json_schema import launch_schema
from octavo.config.launch import LaunchConfig
from octavo.config.schema import NoOptions, Section
from octavo.errors import ConfigError, PluginError
from octavo.hookspecs import hookimpl
from octavo.plugins.host import PluginHost
from octavo.records import (
    ApiRecord,
    AttentionRecord,
    LogitsProcessorRecord,
    OpRecord,
    PolicyRecord,
    QuantizationRecord,
)


class Tile(Section):
    rows: int = Field(default=4, ge=1)


class PagedOptions(Section):
    splits: int = Field(default=8, ge=1, description="Parts of a long sequence.")
    mode: Literal["fast", "exact"] = "fast"
    tile: Tile = Tile()
    tiles: list[Tile] = Field(default=[])


class WebOptions(Section):
    port: int = 80
    key: SecretStr | None = None


PAGED = AttentionRecord(name="paged", summary="Paged.", options=PagedOptions, build=object)


class Plugin:
    """One contribution for most slots."""

    @hookimpl
    def octavo_attention_backends(self) -> Any:
        yield PAGED

    @hookimpl
    def octavo_api_surfaces(self) -> Any:
        yield ApiRecord(name="web", summary="Web.", options=WebOptions, build=object)

    @hookimpl
    def octavo_logits_processors(self) -> Any:
        for name in ("calm", "loud"):
            yield LogitsProcessorRecord(
                name=name, summary="", build=object, speculation_safe=True, argmax_invariant=False
            )

    @hookimpl
    def octavo_quantizations(self) -> Any:
        yield QuantizationRecord(name="q4", summary="Four bits.", build=object)

    @hookimpl
    def octavo_ops(self) -> Any:
        yield OpRecord(op="silu_mul", name="fused", summary="", build=object)


def load(config: Mapping[str, Any] | None = None, *overrides: str) -> LaunchConfig:
    data = {"plugins": {"autoload": False}, **(config or {})}
    return load_launch(data, overrides, [Plugin()])[0]


def test_defaults_are_complete() -> None:
    config = load()
    assert config.scheduler.use == "fcfs"
    assert isinstance(config.scheduler.options, NoOptions)
    assert config.cache.block_size == 16
    assert config.attention.use == "auto"
    assert config.api == []


def test_options_become_the_records_own() -> None:
    config = load({"attention": {"use": "paged", "options": {"splits": 2}}})
    assert config.attention.options == PagedOptions(splits=2)
    assert load({"attention": {"use": "paged"}}).attention.options == PagedOptions()


def test_short_forms() -> None:
    config = load({"attention": "paged", "api": ["web"], "logits_processors": ("calm", {"use": "loud"})})
    assert config.attention.use == "paged"
    assert [item.use for item in config.logits_processors] == ["calm", "loud"]
    assert config.api[0].options == WebOptions()
    assert load(None, "attention=paged", "attention.options.splits=3").attention.options.splits == 3


def test_python_may_give_a_record_or_options_where_yaml_takes_names() -> None:
    mine = PolicyRecord(name="mine", summary="", build=object)
    config = load({"scheduler": {"use": mine, "max_sequences": 3}})
    assert config.scheduler.use is mine
    assert config.scheduler.max_sequences == 3
    assert load({"scheduler": mine}).scheduler.use is mine
    given = load({"attention": {"use": PAGED, "options": {"splits": 5}}})
    assert given.attention.options == PagedOptions(splits=5)
    options = PagedOptions(splits=6)
    assert load({"attention": {"use": "paged", "options": options}}).attention.options is options


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown section": ({"modle": {}}, r"^modle: unknown key\. Did you mean 'model'\?"),
    "a section of later days": ({"multimodal": {}}, r"^multimodal: unknown key\."),
    "an unknown key": (
        {"cache": {"blok_size": 1}},
        r"^cache\.blok_size: .*Did you mean 'block_size'\?",
    ),
    "a key that belongs elsewhere": (
        {"max_sequences": 3},
        r"^max_sequences: unknown key\. Did you mean 'scheduler\.max_sequences'\?",
    ),
    "a value out of range": (
        {"cache": {"block_size": 0}},
        r"^cache\.block_size: should be .* 1, not 0\.",
    ),
    "a wrong type": (
        {"scheduler": {"max_sequences": "many"}},
        r"^scheduler\.max_sequences: .*integer or should be 'auto', not 'many'\.",
    ),
    "a number that is text": ({"cache": {"blocks": "8"}}, r"^cache\.blocks: .*integer, not '8'\."),
    "a truth for a number": ({"cache": {"blocks": True}}, r"^cache\.blocks: "),
    "a union": (
        {"model": {"max_length": "long"}},
        r"^model\.max_length: should be a valid integer or should be 'auto', not 'long'\.$",
    ),
    "a literal": ({"model": {"dtype": "int8"}}, r"^model\.dtype: should be 'auto', 'float32', .*, not 'int8'\."),
    "a list for a section": ({"cache": [1]}, r"^cache: .*not \[1\]\."),
    "an unknown name": (
        {"attention": {"use": "pagde"}},
        r"^attention\.use: there is no attention backend named 'pagde'\. Did you mean 'paged'\?.*: torch, paged\.",
    ),
    "a name in a list": ({"api": [{"use": "webb"}]}, r"^api\.0\.use: there is no API surface named 'webb'\."),
    "auto in a list": ({"api": ["auto"]}, r"^api\.0\.use: there is no API surface named 'auto'\."),
    "a list item without name": ({"api": [{}]}, r"^api\.0\.use: must be given\."),
    "no list": ({"api": "web"}, r"^api: should be a list, such as \[web\]\."),
    "a number for a name": ({"attention": {"use": 3}}, r"^attention\.use: should be a name.*, not 3\."),
    "an unknown loader": ({"model": {"loader": "safetensor"}}, r"^model\.loader: .*Did you mean 'safetensors'\?"),
    "options of the loader": (
        {"model": {"loader": "dummy", "loader_options": {"seed": 1}}},
        r"^model\.loader_options\.seed: unknown key\. Known here: none\.",
    ),
    "an unknown option": (
        {"attention": {"use": "paged", "options": {"split": 1}}},
        r"^attention\.options\.split: unknown key\. Did you mean 'splits'\?",
    ),
    "an option out of range": (
        {"attention": {"use": "paged", "options": {"splits": 0}}},
        r"^attention\.options\.splits: .*not 0\.",
    ),
    "a nested option": (
        {"attention": {"use": "paged", "options": {"tile": {"rowz": 1}}}},
        r"^attention\.options\.tile\.rowz: unknown key\. Did you mean 'rows'\?",
    ),
    "a nested option in a list": (
        {"attention": {"use": "paged", "options": {"tiles": [{}, {"rows": 0}]}}},
        r"^attention\.options\.tiles\.1\.rows: ",
    ),
    "options that are no mapping": (
        {"attention": {"use": "paged", "options": [1]}},
        r"^attention\.options: .*mapping",
    ),
    "options without a name": (
        {"attention": {"options": {"splits": 1}}},
        r"^attention\.options: options belong to one attention backend, and use is 'auto': "
        r"name it in attention\.use \(torch, paged\)",
    ),
    "options with none": ({"quantization": {"use": "none", "options": {"x": 1}}}, "use is 'none'"),
    "a record of another slot": ({"scheduler": {"use": PAGED}}, r"^scheduler\.use: takes a scheduling policy, not"),
    "options of another record": (
        {"attention": {"use": "torch", "options": PagedOptions()}},
        r"^attention\.options: 'torch' takes NoOptions, not PagedOptions",
    ),
    "an unknown preference": (
        {"attention": {"prefer": ["paged", "trch"]}},
        r"^attention\.prefer\.1: .*Did you mean 'torch'\?",
    ),
    "an unknown preferred op": ({"ops": {"prefer": ["fusd"]}}, r"^ops\.prefer\.0: .*Did you mean 'fused'\?"),
    "a processor twice": ({"logits_processors": ["calm", "calm"]}, r"^logits_processors\.1\.use: .*listed twice"),
    "plugins of a wrong type": ({"plugins": {"load": "x"}}, r"^plugins\.load: .*list"),
    "an unknown key of plugins": ({"plugins": {"dissable": []}}, r"^plugins\.dissable: .*Did you mean 'disable'\?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_by_its_path(case: str) -> None:
    config, pattern = WRONG[case]
    with pytest.raises(ConfigError, match=pattern) as caught:
        load(config)
    assert "\n" not in str(caught.value)
    assert caught.value.path in str(caught.value)


def test_other_mistakes_are_mentioned() -> None:
    with pytest.raises(ConfigError, match=r"^model\.seed: .*\(Also wrong: model\.x, cache\.blok\.\)") as caught:
        load({"cache": {"blok": 1}, "model": {"x": 1, "seed": "s"}})
    assert caught.value.path == "model.seed"


def test_preferring_the_reference_operation_is_allowed() -> None:
    assert load({"ops": {"prefer": ["reference", "fused"]}}).ops.prefer == ["reference", "fused"]


def test_an_unknown_name_of_a_disabled_plugin_says_so() -> None:
    config = {"plugins": {"autoload": False, "disable": ["builtin"]}}
    pattern = r"^scheduler\.use: .*'fcfs': no loaded plugin contributes any\. Not loaded: 'builtin' .*disabled"
    with pytest.raises(ConfigError, match=pattern):
        load_launch(config)


def test_an_unknown_name_of_a_failed_plugin_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.plugins import sources

    broken = sources.Source("starfish", "no_such_module", "sea", "0.1", "entry point")
    monkeypatch.setattr(sources, "installed", lambda: [broken])
    pattern = r"'starfish': plugin 'starfish' \(sea 0\.1\) is failed, ModuleNotFoundError"
    with pytest.raises(ConfigError, match=pattern):
        load_launch({"attention": "starfish"})
    with pytest.raises(PluginError, match=r"'starfish' \(sea 0\.1\) can't be loaded"):
        load_launch({"plugins": {"enable": ["starfish"]}})


class Openai:
    @hookimpl
    def octavo_api_surfaces(self) -> Any:
        yield ApiRecord(name="openai", summary="", options=WebOptions, build=object)


def test_the_default_surface_is_there_if_a_plugin_brings_it() -> None:
    off = {"plugins": {"autoload": False}}
    config, _ = load_launch(off, ["api.0.options.port=9000"], [Openai()])
    assert [(item.use, item.options.port) for item in config.api] == [("openai", 9000)]
    assert load_launch({**off, "api": []}, (), [Openai()])[0].api == []
    with pytest.raises(ConfigError, match="api is a list of 0"):
        load_launch(off, ["api.1.options.port=9000"])


def test_overrides_of_plugins_come_before_loading() -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.use"):
        load_launch({"plugins": {"autoload": False}}, ["plugins.disable=[builtin]"])


def test_a_mapping_rebuilds_an_equal_configuration() -> None:
    config, host = load_launch(
        {
            "plugins": {"autoload": False},
            "attention": {"use": "paged", "options": {"splits": 2, "tiles": [{"rows": 1}]}},
            "api": [{"use": "web", "options": {"key": "hush"}}],
            "logits_processors": ["calm"],
            "cache": {"blocks": 7},
        },
        (),
        [Plugin()],
    )
    mapping = json.loads(json.dumps(config.to_mapping()))
    assert mapping["api"][0]["options"]["key"] == "hush"
    assert compose(mapping, host) == config
    assert "hush" not in repr(config)
    assert "hush" not in str(config.model_dump(mode="json"))


def test_a_record_given_in_python_can_not_become_a_mapping() -> None:
    config = load({"scheduler": PolicyRecord(name="mine", summary="", build=object)})
    with pytest.raises(ConfigError, match=r"^scheduler\.use: 'mine' was given as a Python object"):
        config.to_mapping()


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        load().cache.blocks = 3


def test_a_mapping_of_another_kind_and_sections_as_objects_are_fine() -> None:
    from types import MappingProxyType

    from octavo.config.schema import CacheSection

    config = load(MappingProxyType({"model": MappingProxyType({"seed": 3}), "cache": CacheSection(blocks=9)}))
    assert (config.model.seed, config.cache.blocks) == (3, 9)


def test_the_schema_knows_the_names_and_options_of_the_installed_plugins() -> None:
    host = PluginHost.load(load().plugins, [Plugin()])
    schema = launch_schema(host)
    attention = schema["$defs"]["AttentionSection"]
    assert attention["properties"]["use"]["enum"] == ["auto", "torch", "paged"]
    rule = next(item for item in attention["allOf"] if item["if"]["properties"]["use"]["const"] == "paged")
    options = rule["then"]["properties"]["options"]
    assert options["additionalProperties"] is False
    assert options["properties"]["splits"]["default"] == 8
    reference = options["properties"]["tiles"]["items"]["$ref"]
    assert schema["$defs"][reference.removeprefix("#/$defs/")]["properties"]["rows"]["minimum"] == 1
    assert schema["$defs"]["ModelSection"]["properties"]["loader"]["enum"] == [
        "auto",
        "safetensors",
        "gguf",
        "dummy",
    ]
    assert {"enum": ["web"]} in schema["properties"]["api"]["items"]["anyOf"]
