"""The attention slot: paged KV cache, one plan a step, one forward a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec:
    """One attention layer as one rank sees it: heads are already divided among ranks.

    An 8-bit cache holds keys divided by ``key_scale`` and values divided by ``value_scale``.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None
    key_scale: float = 1.0
    value_scale: float = 1.0


@dataclass(slots=True)
class StepBatch:
    """Where the tokens of one step stand. Built once a step by the runner, shared by all layers.

    Rows with one token (decodes) come first: rows ``[0, decodes)``, tokens ``[0, decodes)``. A row's tokens lie
    side by side. Tensors are on the device; the ``*_host`` arrays hold the same numbers for planning.
    """

    num_tokens: int
    num_rows: int
    decodes: int
    positions: torch.Tensor  # int64 [tokens]: position of each token in its sequence
    slots: torch.Tensor  # int64 [tokens]: block * block_size + offset where its key and value are written
    block_tables: torch.Tensor  # int32 [rows, width]: block ids; entries past a row's length are 0
    seq_lens: torch.Tensor  # int32 [rows]: tokens in the cache after this step's are written
    query_starts: torch.Tensor  # int32 [rows + 1]: first token of each row in the batch
    seq_lens_host: np.ndarray
    query_lens_host: np.ndarray
    block_tables_host: np.ndarray


class AttentionBackend(Protocol):
    """Writes keys and values into the paged cache and attends over it. Attention is causal."""

    block_axis: int
    """Which axis of a cache tensor counts blocks."""

    # A backend whose record is ``graph_safe`` may have ``graph_queries: int`` (default 1): steps in which every row
    # brings the same number of queries, up to this, can be captured as steps of single queries can.

    def kv_shape(self, spec: AttentionSpec, num_blocks: int) -> tuple[int, ...]:
        """Shape of one layer's cache tensor, both keys and values; the backend chooses the layout."""
        ...

    def plan(self, batch: StepBatch) -> Any:
        """Work shared by all layers of a step: index tensors, masks, split counts. Called once a step."""
        ...

    def forward(
        self,
        plan: Any,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
    ) -> torch.Tensor:
        """Write this step's keys and values, then attend.

        ``query`` [tokens, heads, head_dim]; ``key`` and ``value`` [tokens, kv_heads, head_dim]; all writes happen
        before any read, since rows may share blocks that are computed in this very step.
        Returns [tokens, heads * head_dim], in the query's dtype.
        """
        ...
