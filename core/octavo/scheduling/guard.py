"""Between scheduler and policy: every answer is checked, every failure names the policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from octavo.contracts.scheduling import LoadView, RequestView, SchedulingPolicy
from octavo.errors import PluginError


class PolicyGuard:
    """A scheduling policy whose answers can be relied on.

    Raises :class:`octavo.errors.PluginError` for an answer out of range or of the wrong type, an index named
    twice, or an exception inside the policy. The scheduler is then in the middle of a step and of no more use.
    """

    __slots__ = ("_name", "_policy")

    def __init__(self, policy: SchedulingPolicy, name: str) -> None:
        self._policy = policy
        self._name = name

    def order(self, requests: Sequence[RequestView], load: LoadView) -> Iterable[int]:
        """Indices of ``requests``, each at most once; as lazy as the policy's own answer."""
        try:
            answer = self._policy.order(requests, load)
        except Exception as error:
            raise self._failed("order", error) from error
        if isinstance(answer, range) and answer == range(len(requests)):
            return answer  # in order of arrival, the usual answer: nothing to check
        return self._checked(answer, len(requests))

    def victim(self, candidates: Sequence[RequestView], load: LoadView) -> int:
        """Index of the candidate to preempt."""
        try:
            answer = self._policy.victim(candidates, load)
        except Exception as error:
            raise self._failed("victim", error) from error
        if not isinstance(answer, int) or not 0 <= answer < len(candidates):
            raise self._wrong("victim", f"{answer!r} is no index of its {len(candidates)} candidates")
        return answer

    def prefill_budget(self, load: LoadView, decodes: int, budget: int) -> int:
        """Tokens for prompts: 0 to ``budget``."""
        try:
            answer = self._policy.prefill_budget(load, decodes, budget)
        except Exception as error:
            raise self._failed("prefill_budget", error) from error
        if not isinstance(answer, int) or not 0 <= answer <= budget:
            raise self._wrong("prefill_budget", f"{answer!r} is not between 0 and the budget of {budget}")
        return answer

    def _checked(self, answer: Any, count: int) -> Iterator[int]:
        seen = bytearray(count)
        try:
            for index in answer:
                if not isinstance(index, int) or not 0 <= index < count:
                    raise self._wrong("order", f"{index!r} is no index of its {count} requests")
                if seen[index]:
                    raise self._wrong("order", f"it names index {index} twice")
                seen[index] = 1
                yield index
        except PluginError:
            raise
        except Exception as error:
            raise self._failed("order", error) from error

    def _wrong(self, method: str, what: str) -> PluginError:
        return PluginError(f"Scheduling policy {self._name!r} gave a wrong answer in {method}(): {what}.")

    def _failed(self, method: str, error: Exception) -> PluginError:
        return PluginError(
            f"Scheduling policy {self._name!r} failed in {method}(): {type(error).__name__}: {error}"
        )
