"""What a script hands to ``LLM``: sorted, or refused in words."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.engine.llm_arguments import adapters_for, conversations_of, params_for, priorities_for, prompts_of
from octavo.errors import RequestError
from octavo.params import SamplingParams

HI = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("x", ["x"]),
        (["x", "y"], ["x", "y"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
        (["x", [1]], ["x", [1]]),
        ([], []),
        ((text for text in "ab"), ["a", "b"]),
        (np.array([1, 2]), [[1, 2]]),
    ],
)
def test_prompts(given, prompts):
    assert prompts_of(given) == prompts


@pytest.mark.parametrize("given", [5, None, b"x", {"prompt": "x"}, 1.5])
def test_no_prompts(given):
    with pytest.raises(RequestError, match="prompts must be text, a list of token ids") as caught:
        prompts_of(given)
    assert caught.value.param == "prompt"


def test_conversations():
    assert conversations_of([HI]) == [[HI]]
    assert conversations_of([[HI], [HI, HI]]) == [[HI], [HI, HI]]
    for wrong in ("hello", 5, HI, ["hello"], [["hello"]], [[HI], 5], [5]):
        with pytest.raises(RequestError, match="messages must be a list of"):
            conversations_of(wrong)


def test_one_for_each():
    params = SamplingParams()
    assert params_for(params, 2) == params_for([params, params], 2) == [params, params]
    assert adapters_for("a", 2) == ["a", "a"]
    assert adapters_for([None, "a"], 2) == [None, "a"]
    assert priorities_for(3, 2) == [3, 3]
    assert priorities_for([1, 2], 2) == [1, 2]
    for call, wrong in ((params_for, [params]), (adapters_for, ["a"]), (priorities_for, [1, 2, 3])):
        with pytest.raises(RequestError, match="there are 2 prompts"):
            call(wrong, 2)
    for call, wrong in ((params_for, 5), (params_for, {"n": 1}), (adapters_for, 5), (priorities_for, "high")):
        with pytest.raises(RequestError, match="must be"):
            call(wrong, 2)
