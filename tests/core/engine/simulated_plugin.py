"""A plugin for tests: engines without a model. Loaded by path, here and in engine processes."""

from __future__ import annotations

import os
import signal
import time

from pydantic import Field

from octavo import hookimpl
from octavo.config.schema import Section
from octavo.contracts.executor import PendingStep, StepPlan
from octavo.errors import CheckpointError
from octavo.records import ExecutorRecord
from octavo.testing.simulated import SimulatedExecutor


class Options(Section):
    depth: int = 0
    step_seconds: float = 0.0
    vocab_size: int = Field(256, description="Tokens that are sampled are below this.")
    fail_at: int = Field(0, description="Step in which it fails.")
    die_at: int = Field(0, description="Step in which the whole process is killed.")
    start: str = Field("", description="`refuse`, `break` or `die` instead of starting.")


class ScriptedExecutor(SimulatedExecutor):
    """A simulated device with a temper."""

    def __init__(self, options: Options, num_blocks: int, block_size: int) -> None:
        super().__init__(
            num_blocks=num_blocks, block_size=block_size, depth=options.depth, vocab_size=options.vocab_size
        )
        self._options = options

    def launch(self, plan: StepPlan) -> PendingStep:
        if self._options.step_seconds:
            time.sleep(self._options.step_seconds)
        if plan.number == self._options.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.number == self._options.fail_at:
            raise RuntimeError("the device is on fire")
        return super().launch(plan)


def build(resolved, options):
    if options.start == "refuse":
        raise CheckpointError("model.safetensors: tensor 'lm_head.weight' is missing.")
    if options.start == "break":
        raise ZeroDivisionError("a bug")
    if options.start == "die":
        os._exit(7)
    return ScriptedExecutor(options, resolved.config.cache.blocks or 64, resolved.context.block_size)


@hookimpl
def octavo_executors():
    yield ExecutorRecord(
        name="scripted", summary="No device, for tests.", build=build, options=Options, automatic=False
    )
