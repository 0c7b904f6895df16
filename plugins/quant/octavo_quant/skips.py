"""Lists of modules that a checkpoint leaves unquantised, in the spellings of the tools that write them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from octavo.contracts.linear import LinearSpec
from octavo.errors import CheckpointError
from octavo_quant.stored import modules_of

Skip = Callable[[str], bool]
_KEYS = ("ignored_layers", "modules_to_not_convert", "ignore", "exclude_modules", "llm_int8_skip_modules")


def listed(config: Mapping[str, Any], where: str) -> list[str]:
    """All patterns of a quantization_config, under whichever key they stand."""
    found: list[str] = []
    for key in _KEYS:
        value = config.get(key) or []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise CheckpointError(f"{where}: quantization_config.{key} must be a list of names, not {value!r}.")
        found += value
    return found


def skipper(patterns: Iterable[str]) -> Skip:
    """Whether a module is named. A pattern is ``re:`` and a regular expression, a wildcard, or a whole path, its
    end or a folder in it."""
    tests = [_test(pattern) for pattern in patterns]
    return lambda module: any(test(module) for test in tests)


def _test(pattern: str) -> Skip:
    if pattern.startswith("re:"):
        compiled = re.compile(pattern[3:])
        return lambda module: compiled.match(module) is not None
    if "*" in pattern:
        return lambda module: fnmatch.fnmatchcase(module, pattern)
    return lambda module: f".{pattern}." in f".{module}."


def one_answer(spec: LinearSpec, answer: Callable[[str], Any], what: str) -> Any:
    """What ``answer`` says of each checkpoint layer merged into ``spec``; they must agree."""
    answers = {module: answer(module) for module in modules_of(spec)}
    first = next(iter(answers))
    for module, value in answers.items():
        if value != answers[first]:
            raise CheckpointError(
                f"{first} and {module} are computed as one layer, but the checkpoint gives them different {what}. "
                "Quantise both the same way, or leave both out."
            )
    return answers[first]
