"""The Triton backend against the torch reference, interpreted on a CPU and natively on a GPU.

python lora_cases.py DEVICE DTYPE        # prints one line a case; exits 1 where one fails
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from octavo.contracts.lora import LoraPart, LoraSite
from octavo_lora.reader import PeftAdapter, Piece
from octavo_lora.torch_backend import TorchLora
from octavo_lora.triton_backend import TritonLora

SLOTS, MAX_RANK = 5, 24
SITES = {"merged": (200, (136, 24, 24)), "one part": (72, (300,)), "wide": (1100, (40, 130))}
STEPS = {
    "mixed": [0, 3, 3, 1, 0, 5, 3, 3, 3, 1],
    "one adapter": [2] * 7,
    "one token": [4],
    "an empty slot": [5, 0, 5],
    "a prompt": [1] * 70 + [3] * 65 + [0] * 9,
    "the base model": [0, 0],
}


def site_of(inputs: int, outputs: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> LoraSite:
    offsets = np.cumsum([0, *outputs])
    parts = [
        LoraPart(module=f"m{at}", out_features=width, out_shard=slice(0, width), offset=int(offsets[at]))
        for at, width in enumerate(outputs)
    ]
    return LoraSite(
        parts=tuple(parts),
        in_features=inputs,
        in_shard=slice(0, inputs),
        adds_bias=True,
        dtype=dtype,
        device=device,
    )


def adapter_for(slot: int, site: LoraSite) -> PeftAdapter:
    """Other ranks in each part; slot 1 leaves the first part alone; slot 3 has biases."""
    pieces = {}
    for at, part in enumerate(site.parts):
        if slot == 1 and at == 0 and len(site.parts) > 1:
            continue
        rank = (3 * slot + 5 * at) % MAX_RANK + 1
        down = torch.randn(rank, site.in_features) / site.in_features**0.5
        bias = torch.randn(part.width).to(site.dtype) if slot == 3 else None
        pieces[0, at] = Piece(down.to(site.dtype), torch.randn(part.width, rank).to(site.dtype), bias)
    return PeftAdapter("", MAX_RANK, 0, pieces)


def run(device: torch.device, dtype: torch.dtype) -> bool:
    torch.manual_seed(1)
    good, tolerance = True, 1e-5 if dtype == torch.float32 else 1e-2
    for name, (inputs, outputs) in SITES.items():
        site = site_of(inputs, outputs, dtype, device)
        backends = TorchLora(SLOTS, MAX_RANK), TritonLora(SLOTS, MAX_RANK)
        layers = [backend.attach(site) for backend in backends]
        for slot in (1, 2, 3, 4):
            adapter = adapter_for(slot, site)
            for backend in backends:
                backend.load(slot, adapter)
        for step, wanted in STEPS.items():
            host = np.array(wanted)
            x = torch.randn(len(host), inputs).to(dtype).to(device)
            base = torch.randn(len(host), sum(outputs)).to(dtype).to(device)
            outs = [base.clone(), base.clone()]
            for backend, layer, out in zip(backends, layers, outs, strict=True):
                backend.begin(torch.from_numpy(host).to(device), host)
                layer(x, out)
            error = float((outs[0].double() - outs[1].double()).norm() / outs[0].double().norm())
            print(f"{name}, {step}: {error:.2e}")
            good &= error <= tolerance
            good &= torch.equal(outs[1][host == 0], base[host == 0])
    return good


if __name__ == "__main__":
    sys.exit(not run(torch.device(sys.argv[1]), getattr(torch, sys.argv[2])))
