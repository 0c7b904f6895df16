"""A plugin in 20 lines: the shortest prompt is served first.

octavo serve --set plugins.load=[examples/plugin_in_20_lines.py] --set scheduler=shortest-prompt
"""

from octavo import hookimpl
from octavo.records import PolicyRecord


class ShortestPrompt:
    def order(self, requests, load):
        return sorted(range(len(requests)), key=lambda index: requests[index].prompt_length)

    def victim(self, candidates, load):
        return max(range(len(candidates)), key=lambda index: candidates[index].prompt_length)

    def prefill_budget(self, load, decodes, budget):
        return budget


@hookimpl
def octavo_scheduling_policies():
    yield PolicyRecord(
        name="shortest-prompt", summary="Shortest prompt first.", build=lambda options: ShortestPrompt()
    )
