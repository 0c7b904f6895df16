"""An engine put together in Python: wherever a launch file takes a name, Python takes an object as well.

python examples/compose_in_python.py
python examples/compose_in_python.py --model ./my-checkpoint
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from octavo import LLM, SamplingParams, hookimpl
from octavo.config.schema import NoOptions
from octavo.contracts.api import RequestSummary
from octavo.contracts.scheduling import LoadView, RequestView
from octavo.records import PolicyRecord


class ShortestFirst:
    """A scheduling policy: the request with the fewest tokens to come is served first."""

    def order(self, requests: Sequence[RequestView], load: LoadView) -> Iterable[int]:
        """Indices, best first."""
        return sorted(range(len(requests)), key=lambda index: requests[index].max_tokens)

    def victim(self, candidates: Sequence[RequestView], load: LoadView) -> int:
        """The longest gives way when blocks run out."""
        return max(range(len(candidates)), key=lambda index: candidates[index].max_tokens)

    def prefill_budget(self, load: LoadView, decodes: int, budget: int) -> int:
        """At most half of a step for prompts while others wait for their next token."""
        return budget // 2 if decodes else budget


def build(options: NoOptions) -> ShortestFirst:
    """What the record builds."""
    return ShortestFirst()


POLICY = PolicyRecord(name="shortest", summary="The fewest tokens first.", build=build)


class Log:
    """A plugin of one hook, given as an object."""

    @hookimpl
    def octavo_request_finished(self, summary: RequestSummary) -> None:
        """Called in a thread of its own."""
        print(f"{summary.request_id}: {summary.output_tokens} tokens, {summary.finish_reason}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run three requests, one at a time; the shortest comes first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:smollm2-135m-instruct")
    args = parser.parse_args(argv)
    with LLM(
        args.model,
        plugins=[Log()],
        scheduler={"use": POLICY, "max_sequences": 1},
        cache={"blocks": 64},
    ) as llm:
        print(llm.explain().text(), "\n")
        params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (12, 8, 4)]
        llm.generate(["One", "Two", "Three"], params)


if __name__ == "__main__":
    main()
