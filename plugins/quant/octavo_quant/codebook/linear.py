"""Linear layers of four-bit codebook weights on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo.layers import Unquantized
from octavo_quant.codebook.weights import UNIT, Codes
from octavo_quant.expanded import Expanded, Format
from octavo_quant.scratch import reserve


class CodebookFormat(Format, Protocol):
    """How a checkpoint writes such weights."""

    def codes(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Codes | None:
        """The codes, unpacked; ``None`` where its groups of inputs do not fit a row."""
        ...


@dataclass(frozen=True, slots=True)
class CodebookLinear:
    """A :class:`octavo.contracts.linear.LinearMethod`. Activations stay 16-bit."""

    form: CodebookFormat

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return {name: replace(param, transient=True) for name, param in self.form.params(spec).items()}

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Any:
        reserve(spec.device)
        codes = self.form.codes(spec, raw)
        if codes is None:
            return self.form.dequantise(spec, raw).to(spec.dtype)
        return codes.packed()

    def apply(self, weights: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        if not isinstance(weights, Codes):
            return Unquantized().apply(weights, x, bias)
        from octavo_quant.codebook.launch import codebook_matmul

        return codebook_matmul(x, weights, bias)


def codebook_method(form: CodebookFormat, spec: LinearSpec, kernels: bool) -> LinearMethod:
    """The kernels where they run and the inputs are whole units, else the decoded weight."""
    return CodebookLinear(form) if kernels and spec.in_features % UNIT == 0 else Expanded(form)
