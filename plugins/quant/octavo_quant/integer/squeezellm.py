"""SqueezeLLM (Kim et al., arXiv 2306.07629): codes into a table of each output, and a few weights beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.checkpoint import read_tensors
from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo.errors import CheckpointError
from octavo.records import Context
from octavo_quant.grouped import GroupedWeights, dense_grouped, grouped_linear, pack_table, priced
from octavo_quant.integer.bits import unpack
from octavo_quant.skips import Skip, listed, one_answer, skipper
from octavo_quant.stored import Stored, floats, modules_of

_BITS = (3, 4)
_SPARSE = ("rows", "cols", "vals", "full_rows", "full_row_indices")


@dataclass(frozen=True, slots=True)
class TableWeights:
    """``dense`` without the sparse part; ``sparse``: row starts, columns and values, or ``None``."""

    dense: GroupedWeights
    sparse: tuple[Tensor, Tensor, Tensor] | None


@dataclass(frozen=True, slots=True)
class SqueezeLlmLinear:
    """A :class:`octavo.contracts.linear.LinearMethod`.

    ``qweight`` int32 [in * bits / 32, out], packed down the inputs as GPTQ's; ``lookup_table`` [out, 2 ** bits].
    The sparse part, of a size of its own in each layer, is read here: ``rows``, ``cols``, ``vals`` (by rows) and,
    for outputs with many, ``full_rows`` [in, n] of the outputs ``full_row_indices``. ``rank`` of ``ranks`` takes
    its share.
    """

    stored: Stored
    bits: int
    rank: int = 0
    ranks: int = 1
    packed: bool = True

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks or has in another shape."""
        full, why = spec.full_in or spec.in_features, f"a {self.bits}-bit SqueezeLLM weight"
        name = f"{spec.name}.qweight"
        if full % 32 or spec.in_features % 32:
            raise self.stored.wrong(name, f"has {full} inputs; they (and a rank's share) must be a multiple of 32")
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            rows = (self.stored.shape(f"{module}.qweight") or (0, part))[-1]
            self.stored.need(f"{module}.qweight", [(full * self.bits // 32, rows)], ["int32"], why)
            self.stored.need(f"{module}.lookup_table", [(rows, 2**self.bits)], floats(), why)
            if self.stored.has(f"{module}.rows"):
                self.stored.need(f"{module}.rows", [(rows + 1,)], ["int32"], why)
                count = self.stored.shape(f"{module}.cols") or ()
                self.stored.need(f"{module}.cols", [count], ["int32"], why)
                self.stored.need(f"{module}.vals", [count], floats(), why)

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        params = {
            "qweight": ParamSpec(
                shape=(spec.in_features * self.bits // 32, spec.out_features),
                dtype=torch.int32,
                in_axis=0,
                out_axis=1,
                in_pack=(32, self.bits),
            ),
            "lookup_table": ParamSpec(shape=(spec.out_features, 2**self.bits), dtype=torch.float32, out_axis=0),
        }
        return priced(spec, params, bits=self.bits, group=spec.in_features, packed=self.packed)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> TableWeights:
        codes, table = unpack(raw["qweight"], self.bits, 0).T.contiguous(), raw["lookup_table"]
        beside = self._beside(spec)
        if codes.device.type != "cuda":
            weight = table.gather(1, codes.long())
            if beside is not None:
                weight += beside.to(weight.device)
            whole = dense_grouped(weight, bits=self.bits, group_size=spec.in_features, dtype=spec.dtype)
            return TableWeights(whole, None)
        dense = pack_table(codes, table, bits=self.bits, dtype=spec.dtype)
        return TableWeights(dense, None if beside is None else _by_rows(beside, codes.device))

    def apply(self, weights: TableWeights, x: Tensor, bias: Tensor | None) -> Tensor:
        out = grouped_linear(x, weights.dense, bias)
        if weights.sparse is not None:
            from octavo_quant.grouped.launch import add_sparse

            add_sparse(x, *weights.sparse, out)
        return out

    def _beside(self, spec: LinearSpec) -> Tensor | None:
        """The sparse part of all merged layers, this rank's share, written out: float32 [out, in]."""
        parts = [self._part(spec, *each) for each in zip(modules_of(spec), spec.out_parts, strict=True)]
        if all(part is None for part in parts):
            return None
        empty = [torch.zeros(size, spec.in_features) for size in spec.out_parts]
        return torch.cat([one if part is None else part for part, one in zip(parts, empty, strict=True)])

    def _part(self, spec: LinearSpec, module: str, local: int) -> Tensor | None:
        names = [f"{module}.{name}" for name in _SPARSE if self.stored.has(f"{module}.{name}")]
        if not names:
            return None
        found = read_tensors({name: self.stored.entries[name] for name in names})
        tensors = {name.rpartition(".")[2]: tensor for name, tensor in found.items()}
        full_in = spec.full_in or spec.in_features
        full_out = (self.stored.shape(f"{module}.qweight") or (0, local))[1]
        try:
            whole = _written_out(tensors, full_out, full_in)
        except (IndexError, RuntimeError) as error:
            raise self.stored.wrong(f"{module}.rows", f"does not describe a sparse matrix: {error}") from error
        row = self.rank * (full_out // local) // self.ranks * local if local != full_out else 0
        column = self.rank * spec.in_features if spec.in_features != full_in else 0
        return whole[row : row + local, column : column + spec.in_features]


@dataclass(frozen=True, slots=True)
class SqueezeLlmScheme:
    """A :class:`octavo.contracts.linear.QuantScheme`."""

    method: SqueezeLlmLinear
    skip: Skip
    ignored_weights: Sequence[str] = (r"\.(rows|cols|vals|startrows|full_rows|full_row_indices)$",)

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        if one_answer(spec, self._plain, "types"):
            return None
        self.method.check(spec)
        return self.method

    def _plain(self, module: str) -> bool:
        stored = self.method.stored
        if stored.known:
            return stored.has(f"{module}.weight") and not stored.has(f"{module}.qweight")
        return module == "lm_head" or self.skip(module)


def squeezellm_scheme(ctx: Context) -> SqueezeLlmScheme:
    """From a quantization_config of method ``squeezellm``. Raises :class:`CheckpointError`."""
    config = ctx.model.quantization or {}
    bits = config.get("bits", config.get("wbits"))
    if bits not in _BITS:
        raise CheckpointError(
            f"{ctx.model.path}: quantization_config.bits is {bits!r}; SqueezeLLM is read with 3 and 4."
        )
    method = SqueezeLlmLinear(
        Stored(ctx.model), int(bits), ctx.rank, ctx.tensor_parallel, ctx.device.type == "cuda"
    )
    return SqueezeLlmScheme(method, skipper(listed(config, ctx.model.path)))


def _written_out(tensors: Mapping[str, Tensor], rows: int, columns: int) -> Tensor:
    whole = torch.zeros(rows, columns)
    if "rows" in tensors:
        counts = tensors["rows"].long().diff()
        row = torch.repeat_interleave(torch.arange(rows), counts)
        whole.index_put_((row, tensors["cols"].long()), tensors["vals"].float(), accumulate=True)
    if "full_rows" in tensors:
        whole.index_add_(0, tensors["full_row_indices"].long(), tensors["full_rows"].float().T)
    return whole


def _by_rows(whole: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    row, column = whole.nonzero(as_tuple=True)
    starts = torch.zeros(whole.shape[0] + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(row, minlength=whole.shape[0]).cumsum(0)
    return starts.to(device), column.int().to(device), whole[row, column].to(device)
