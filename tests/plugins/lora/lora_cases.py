"""The Triton backend against the torch reference, interpreted on a CPU and natively on a GPU.

python lora_cases.py DEVICE DTYPE        # prints one line a case; exits 1 where one fails
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from octavo.contracts.lora import LoraPart, LoraSite
from octavo_lora.pieces import PeftAdapter, Piece
from octavo_lora.torch_backend import TorchLora
from octavo_lora.triton_backend import TritonLora

SLOTS = 5
SITES = {  # inputs, outputs of the parts, largest rank
    "merged": (200, (136, 24, 24), 24),
    "one part": (72, (300,), 100),
    "wide": (1100, (40, 130), 8),
}
STEPS = {
    "mixed": [0, 3, 3, 1, 0, 5, 3, 3, 3, 1],
    "one adapter": [2] * 7,
    "one token": [4],
    "an empty slot": [5, 0, 5],
    "a prompt": [1] * 70 + [3] * 65 + [0] * 9,
    "prompts": [1] * 300 + [3, 0, 4] + [2] * 140,
    "long prompts": [4] * 700 + [2, 3] + [1] * 400,
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
        columns=lambda start, stop: torch.zeros(stop - start, sum(outputs)),
    )


def adapter_for(slot: int, site: LoraSite, max_rank: int) -> PeftAdapter:
    """Other ranks in each part; slot 1 leaves the first part alone; 3 has biases, 2 factors, 4 some of both."""
    pieces = {}
    for at, part in enumerate(site.parts):
        if slot == 1 and at == 0 and len(site.parts) > 1:
            continue
        rank = (37 * slot + 5 * at) % max_rank + 1
        down = torch.randn(rank, site.in_features) / site.in_features**0.5
        bias = torch.randn(part.width).to(site.dtype) if slot == 3 or (slot == 4 and at == 0) else None
        gain = 1 + 0.3 * torch.randn(part.width) if slot == 2 or (slot == 4 and at == 1) else None
        pieces[0, at] = Piece(down.to(site.dtype), torch.randn(rank, part.width).to(site.dtype), bias, gain)
    return PeftAdapter("", max_rank, 0, pieces)


def run(device: torch.device, dtype: torch.dtype) -> bool:
    torch.manual_seed(1)
    early = device.type == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
    good, tolerance = True, 1e-5 if dtype == torch.float32 else 1e-2
    for name, (inputs, outputs, max_rank) in SITES.items():
        site = site_of(inputs, outputs, dtype, device)
        backends = TorchLora(SLOTS, max_rank), TritonLora(SLOTS, max_rank, 0, early)
        layers = [backend.attach(site) for backend in backends]
        for slot, of in ((1, 4), (2, 3), (1, 1), (2, 2), (3, 3), (4, 4), (5, 2)):  # some slots twice
            adapter = adapter_for(of, site, max_rank)
            for backend in backends:
                backend.load(slot, adapter)
        for backend in backends:
            backend.clear(5)
        for step, wanted in STEPS.items():
            host = np.array(wanted)
            slots = torch.from_numpy(host).to(device)
            x = torch.randn(len(host), inputs).to(dtype).to(device)
            base = torch.randn(len(host), sum(outputs)).to(dtype).to(device)
            outs = [base.clone() for _ in range(3)]
            for at, known in ((0, host), (1, host), (2, None)):  # None: as in a captured graph
                which = min(at, 1)
                backends[which].begin(slots, known)
                layers[which](x, outs[at])
            errors = [float((outs[0].double() - out.double()).norm() / outs[0].double().norm()) for out in outs[1:]]
            print(f"{name}, {step}: {errors[0]:.2e} {errors[1]:.2e}")
            good &= max(errors) <= tolerance
            good &= all(torch.equal(out[host == 0], base[host == 0]) for out in outs[1:])
            good &= not np.isin(host, (1, 2, 3, 4)).any() or not torch.equal(outs[1], base)
    return good


if __name__ == "__main__":
    sys.exit(not run(torch.device(sys.argv[1]), getattr(torch, sys.argv[2])))
