"""The scheduler's books, verified against each other."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.cache.blocks import BlockPool, EngineInvariantError
from octavo.scheduling.request import Request


def audit(
    running: Sequence[Request],
    waiting: Sequence[Request],
    free_rows: Sequence[int],
    max_sequences: int,
    block_size: int,
    pool: BlockPool,
) -> None:
    """Raises :class:`EngineInvariantError` naming the request or the block that is wrong."""
    pool.check(request.blocks for request in running)
    rows = sorted([*(request.row for request in running), *free_rows])
    if rows != list(range(max_sequences)):
        raise EngineInvariantError(
            f"Rows in use and free rows are not 0 to {max_sequences - 1}, each once: {rows}."
        )
    for line in (running, waiting):
        arrivals = [(request.arrival, request.id) for request in line]
        if arrivals != sorted(set(arrivals)):
            raise EngineInvariantError(f"A line is not in order of arrival: {arrivals}.")
    for request in (*running, *waiting):
        problem = _tokens_problem(request) or _place_problem(request, block_size, pool)
        if problem:
            raise EngineInvariantError(f"Request {request.id} {problem}.")


def _tokens_problem(request: Request) -> str | None:
    length = request.prompt_length + request.output_length
    if request.known != length + request.pending or request.pending < 0:
        return f"has {length} tokens and {request.pending} pending, but {request.known} known ones"
    if not request.computed < request.known <= request.limit:
        return f"must have computed {request.computed} < known {request.known} <= limit {request.limit}"
    if request.finish_reason is not None or length >= request.limit:
        return "has ended, but still runs or waits"
    return None


def _place_problem(request: Request, block_size: int, pool: BlockPool) -> str | None:
    if request.row < 0:
        idle = not request.blocks and not request.computed and not request.published
        return None if idle else "waits, but holds blocks"
    if len(request.blocks) != -(-(request.computed + request.drafted + request.ahead) // block_size):
        return (
            f"has {len(request.blocks)} blocks for {request.computed} computed and {request.drafted} drafted "
            f"tokens and {request.ahead} behind them"
        )
    if request.published * block_size > min(request.computed, request.known - request.pending):
        return f"has published {request.published} blocks, more than are full and known"
    for index, block in enumerate(request.blocks):
        digest = pool.hash_of(block)
        expected = request.hashes[index] if index < request.published else None
        if digest is not None and digest != expected:
            return f"has block {block} at index {index}, published under another prefix"
    return None
