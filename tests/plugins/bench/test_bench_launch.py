"""The launch configuration of a measurement: what lies over what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo_bench.launch import assign, launch_sections, merge, override
from octavo_bench.presets import PRESETS


def sections(**given: Any) -> Any:
    values = {"config": None, "model": None, "shape": None, "preset": None, "prefix_cache": None, "overrides": []}
    return launch_sections(**{**values, **given})


def test_the_command_line_lies_over_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text("scheduler: {max_sequences: 100, max_batch_tokens: 2048}\ncache: {block_size: 32}\n")
    overrides = ["scheduler.max_sequences=7", "attention=torch", "attention.options.x=[1, 2]"]
    with sections(config=str(file), preset=PRESETS["W3"], prefix_cache="off", overrides=overrides) as found:
        assert found["scheduler"] == {"max_sequences": 7, "max_batch_tokens": 2048}
        assert found["cache"] == {"memory": 0.95, "dtype": "fp8_e4m3", "block_size": 32, "prefix_caching": False}
        assert found["attention"] == {"use": "torch", "options": {"x": [1, 2]}}
        folder = Path(found["model"]["path"])
        assert (folder / "config.json").is_file()
    assert not folder.exists()


def test_a_model_takes_the_place_of_a_presets_shape() -> None:
    with sections(model="somewhere", preset=PRESETS["W1"]) as found:
        assert found == {"model": {"path": "somewhere"}}


@pytest.mark.parametrize(
    "given",
    [
        {"shape": "8b", "model": "x"},
        {"shape": "8b", "overrides": ["model.path=x"]},
        {"preset": PRESETS["W1"], "overrides": ["model.path=x"]},
    ],
)
def test_two_models_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="brings a model"), sections(**given):
        pass


def test_overrides_reach_into_lists() -> None:
    assert override({"api": [{"use": "a"}]}, ["api.0.options.port=9", "api.1=b"]) == {
        "api": [{"use": "a", "options": {"port": 9}}, "b"]
    }


@pytest.mark.parametrize("text", ["cache", "=1", "a..b=1", "a=[", "list.x=1", "list.5=1", "number.x=1"])
def test_wrong_overrides_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        override({"list": [1], "number": 3}, [text])


def test_merge_and_assign_leave_their_arguments_alone() -> None:
    low = {"a": {"b": 1}}
    assert merge(low, {"a": {"c": 2}, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert assign(low, ("a", "b"), 5) == {"a": {"b": 5}}
    assert low == {"a": {"b": 1}}


@pytest.mark.parametrize("text", [None, "- a", "a: ["])
def test_a_wrong_file_is_refused(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "launch.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="launch file"), sections(config=str(file)):
        pass
