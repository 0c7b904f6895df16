"""Random weights: the distributions that benchmarks rely on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.contracts.model import WeightSlot
from octavo.loading.dummy import DummyLoader
from octavo.loading.profile import read_profile
from octavo.testing.tiny import tiny_llama


def slot(name: str, shape: tuple[int, ...], dtype: torch.dtype, **how: Any) -> WeightSlot:
    shard = tuple(slice(0, size) for size in shape)
    return WeightSlot(name, shape, shard, torch.zeros(shape, dtype=dtype), **how)


class Model:
    """Only slots."""

    def __init__(self, *slots: WeightSlot) -> None:
        self._slots = list(slots)

    def slots(self) -> list[WeightSlot]:
        return self._slots


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_llama(tmp_path_factory.mktemp("dummy") / "m", bias=True)
    for file in ("model.safetensors", "tokenizer.json"):
        (folder / file).unlink()
    return read_profile(str(folder))


def draw(profile: Any, *slots: WeightSlot, seed: int = 0) -> list[torch.Tensor]:
    DummyLoader(seed).load(Model(*slots), profile, lambda *_: None)  # type: ignore[arg-type]
    return [slot.target for slot in slots]


def test_a_whole_model(kit: Any, profile: Any) -> None:
    assert profile.format == "config"
    model = kit.fake(profile)
    DummyLoader().load(model, profile, kit.quiet)
    for name, weight in model.weights().items():
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif name.endswith(".bias"):
            assert torch.equal(weight, torch.zeros_like(weight)), name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(weight.mean().item()) < 0.002, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_matrices_on_a_cpu(profile: Any, dtype: torch.dtype) -> None:
    """More numbers than are drawn: rows still differ, and the spread is right."""
    (weight,) = draw(profile, slot("a.weight", (9000, 1024), dtype))
    assert weight.float().std().item() == pytest.approx(0.02, rel=0.01)
    assert len(torch.unique(weight[:, :8].float(), dim=0)) > 8900
    assert torch.linalg.matrix_rank(weight[::9].float()).item() == 1000


def test_fp8_matrices_and_their_scales(profile: Any) -> None:
    weight, scale, inverse, kv = draw(
        profile,
        slot("a.weight", (256, 256), torch.float8_e4m3fn),
        slot("a.weight_scale", (), torch.float32),
        slot("a.weight_scale_inv", (2, 2), torch.float32),
        slot("a.k_scale", (1,), torch.float32),
    )
    values = weight.float()
    assert torch.isfinite(values).all()
    assert values.std().item() == pytest.approx(64, rel=0.05)
    assert values.abs().max().item() <= 448
    assert scale.item() == pytest.approx(0.02 / 64)
    assert torch.equal(inverse, torch.full((2, 2), 0.02 / 64))
    assert kv.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_packed_integers_use_all_bits(profile: Any, dtype: torch.dtype) -> None:
    (packed,) = draw(profile, slot("a.qweight", (64, 64), dtype))
    bits = 63 if dtype == torch.int64 else torch.iinfo(dtype).bits
    for bit in range(bits):
        share = (packed.long() >> bit & 1).float().mean().item()
        assert 0.4 < share < 0.6, bit


def test_group_indices_stay_valid(profile: Any) -> None:
    (index,) = draw(profile, slot("a.g_idx", (64,), torch.int32))
    assert torch.equal(index, torch.zeros(64, dtype=torch.int32))


def test_what_a_checkpoint_may_lack_stays_unset(profile: Any) -> None:
    optional, needed = (
        slot("a.input_scale", (), torch.float32, optional=True),
        slot("a.weight", (4, 4), torch.float32),
    )
    draw(profile, optional, needed)
    assert (optional.loaded, needed.loaded) == (False, True)


def test_seeds_names_and_order(profile: Any) -> None:
    def pair() -> tuple[WeightSlot, WeightSlot]:
        return slot("a.weight", (32, 32), torch.float32), slot("b.weight", (32, 32), torch.float32)

    a, b = draw(profile, *pair())
    again_b, again_a = draw(profile, *reversed(pair()))
    other, _ = draw(profile, *pair(), seed=1)
    assert torch.equal(a, again_a)
    assert torch.equal(b, again_b)
    assert not torch.equal(a, b)
    assert not torch.equal(a, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_on_a_gpu(profile: Any, dtype: torch.dtype) -> None:
    target = torch.zeros(4096, 4096, dtype=dtype, device="cuda")
    DummyLoader().load(
        Model(WeightSlot("a.weight", (4096, 4096), (slice(0, 4096), slice(0, 4096)), target)),  # type: ignore[arg-type]
        profile,
        lambda *_: None,
    )
    assert target.float().std().item() == pytest.approx(64 if dtype == torch.float8_e4m3fn else 0.02, rel=0.02)
