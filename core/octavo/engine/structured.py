"""Structured outputs as the loop sees them: who waits for a grammar, who needs a mask, who is done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from octavo.contracts.executor import Masks
from octavo.contracts.structured import Vocabulary
from octavo.engine.constraints import Constraint, Ending, follow, make_masks
from octavo.engine.grammars import Built, Grammars
from octavo.engine.messages import Submit
from octavo.engine.tokenizer import load_tokenizer
from octavo.errors import RequestError
from octavo.params import SamplingParams
from octavo.scheduling.step import Progress, Scheduled
from octavo.structured import no_structured_outputs

if TYPE_CHECKING:
    from octavo.assemble import Resolved


Hold = Callable[[], Constraint | None]
"""Makes what holds one answer."""


def _unheld() -> None:
    return None


class NoStructuredOutputs:
    """Where nothing can hold an answer to a grammar: requests that ask for it are refused with ``reason``."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    @property
    def waiting(self) -> bool:
        """Whether a request waits for its grammar."""
        return False

    def check(self, params: SamplingParams) -> None:
        """Raise :class:`RequestError` for a request that can't be served."""
        if params.structured_outputs is not None:
            raise no_structured_outputs(self.reason)

    def prepare(self, submit: Submit) -> None:
        """Wait for the grammar. Raises :class:`RequestError` for one that is wrong."""

    def admit(self, submit: Submit, most: int) -> Hold | None:
        """What holds each of its answers; ``None`` where the request has to wait for its grammar: ``poll`` will
        give it back. ``most`` may wait. Raises :class:`RequestError`."""
        return _unheld

    def poll(self) -> list[tuple[Submit, RequestError | None]]:
        """The requests that wait no longer, and for those that waited in vain the refusal."""
        return []

    def forget(self, ids: Collection[int]) -> None:
        """These answers are not wanted any more."""

    def masks(self, scheduled: Scheduled) -> tuple[Masks | None, list[Ending]]:
        """See :func:`octavo.engine.constraints.make_masks`."""
        return None, []

    def follow(self, progress: Sequence[Progress]) -> list[Ending]:
        """See :func:`octavo.engine.constraints.follow`."""
        return []

    def stop(self) -> None:
        """Free what is held."""


class StructuredEngine(NoStructuredOutputs):
    """Belongs to the engine's thread."""

    def __init__(self, grammars: Grammars) -> None:
        super().__init__("")
        self._grammars = grammars

    @property
    def waiting(self) -> bool:
        return len(self._grammars) > 0

    def check(self, params: SamplingParams) -> None:
        if params.structured_outputs is not None:
            self._grammars.check(params.structured_outputs)

    def prepare(self, submit: Submit) -> None:
        if submit.params.structured_outputs is not None:
            self._grammars.prepare(submit, submit.params.structured_outputs)

    def admit(self, submit: Submit, most: int) -> Hold | None:
        params, wanted = submit.params, submit.params.structured_outputs
        if wanted is None:
            return _unheld
        grammar = self._grammars.get(submit, wanted, most)
        if grammar is None:
            return None
        free_end = not (params.ignore_eos or params.min_tokens)
        return lambda: Constraint(self._grammars.built, grammar, wanted, free_end)

    def poll(self) -> list[tuple[Submit, RequestError | None]]:
        return self._grammars.poll()

    def forget(self, ids: Collection[int]) -> None:
        self._grammars.forget(ids)

    def masks(self, scheduled: Scheduled) -> tuple[Masks | None, list[Ending]]:
        return make_masks(self._grammars.built, scheduled)

    def follow(self, progress: Sequence[Progress]) -> list[Ending]:
        return follow(self._grammars.built, progress)

    def stop(self) -> None:
        self._grammars.stop()


def build_structured(resolved: Resolved) -> NoStructuredOutputs:
    """What the configuration asks for. The backend itself is built, in a thread, when a request needs it."""
    choice = resolved.choices.get("structured")
    if choice is None:
        return NoStructuredOutputs(resolved.absent["structured"].reason)

    def build() -> Built:
        vocabulary = _vocabulary(resolved)
        return Built(choice.build(resolved.context, choice.options, vocabulary), vocabulary)

    return StructuredEngine(Grammars(build, resolved.config.structured_outputs))


def _vocabulary(resolved: Resolved) -> Vocabulary:
    """Raises :class:`RequestError` for a model without a tokenizer."""
    model, profile = resolved.config.model, resolved.context.model
    try:
        tokenizer = load_tokenizer(profile, model.tokenizer)
    except Exception as error:
        raise RequestError(f"structured outputs need a tokenizer: {error}", param="structured_outputs") from error
    count = max(profile.vocab_size, tokenizer.vocab_size)
    return Vocabulary(
        tokens=[tokenizer.token_bytes(token) for token in range(count)],
        special_ids=tokenizer.special_ids,
        eos_ids=tokenizer.eos_ids,
        encode=lambda text: tokenizer.encode(text, False),
        serialized=tokenizer.backend.to_str(),
    )
