"""``octavo sample``: what ageing does to waiting times, on Octavo's real scheduler and a simulated device."""

from __future__ import annotations

import argparse
import random
from statistics import mean

from octavo_sample.options import ShortestFirstOptions
from octavo_sample.policy import ShortestFirst

_FCFS_AGEING = 1e9  # so much that only the time of arrival counts


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--jobs", type=int, default=200, metavar="N", help="requests (default: 200)")
    parser.add_argument("--ageing", type=float, default=0.5, metavar="X", help="in tokens a step (default: 0.5)")


def run(args: argparse.Namespace) -> int:
    """Print a line for no ageing, the ageing asked for, and so much that it is first come, first served."""
    from octavo.testing.trial import Job, try_policy

    dice = random.Random(0)
    jobs = [
        Job(prompt_length=dice.choice((8, 16, 300)), max_tokens=dice.choice((4, 16, 120)), arrival=10 * index)
        for index in range(args.jobs)
    ]
    print("ageing            mean steps  longest")
    for name, ageing in (("none", 0.0), (f"{args.ageing:g}", args.ageing), ("first come first", _FCFS_AGEING)):
        outcomes = try_policy(ShortestFirst(ShortestFirstOptions(ageing=ageing)), jobs, max_sequences=4)
        steps = [outcome.finished - job.arrival for outcome, job in zip(outcomes, jobs, strict=True)]
        print(f"{name:16} {mean(steps):11.1f} {max(steps):8}")
    return 0
