"""Probing the machine. The GPU half is tested with a stand-in for torch: what is asked of it, and what is made of
the answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo import device
from octavo.errors import ConfigError


def test_the_cpu_is_described_without_torch() -> None:
    code = (
        "import sys; from octavo.device import probe_device; d = probe_device('cpu');"
        "assert 'torch' not in sys.modules; print(d.type, d.torch_name, d.cores, d.free_memory, d.total_memory)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[:2] == ["cpu", "cpu"]
    cores, free, total = map(int, out[2:])
    assert cores >= 1
    assert 0 < free <= total


def test_a_container_limits_memory_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 800 kB\n")
    (tmp_path / "memory.max").write_text("512000\n")
    (tmp_path / "memory.current").write_text("12000\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(device, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    found = device.probe_cpu()
    assert (found.total_memory, found.free_memory, found.cores) == (512000, 500000, 1)
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 8000\n")
    assert device.probe_cpu().free_memory == 508000, "cached files are not in the way"
    (tmp_path / "memory.max").write_text("max\n")
    found = device.probe_cpu()
    assert (found.total_memory, found.free_memory) == (1000 * 1024, 800 * 1024)


def test_without_proc_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(device, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    found = device.probe_cpu()
    assert found.total_memory == found.free_memory > 0
    assert found.name


class FakeCuda:
    def __init__(self, count: int) -> None:
        self.count = count

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(name=f"GPU {index}", major=9, minor=0, multi_processor_count=132)

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 70, 80


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    def have(count: int) -> None:
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=FakeCuda(count)))
        monkeypatch.setattr(device, "_may_have_gpu", lambda: True)

    return have


def test_auto_takes_the_first_gpu_else_the_cpu(gpus: Any) -> None:
    gpus(2)
    found = device.probe_device("auto")
    assert (found.torch_name, found.name, found.capability) == ("cuda:0", "GPU 0", (9, 0))
    assert (found.total_memory, found.free_memory, found.cores) == (80, 70, 132)
    gpus(0)
    assert device.probe_device().type == "cpu"


def test_a_gpu_is_named_by_its_number(gpus: Any) -> None:
    gpus(2)
    assert device.probe_device("cuda").torch_name == "cuda:0"
    assert device.probe_device("cuda:1").torch_name == "cuda:1"
    with pytest.raises(ConfigError, match=r"^model\.device: 'cuda:2' is not there: .*has 2 \(cuda:0 to cuda:1\)"):
        device.probe_device("cuda:2")
    gpus(0)
    with pytest.raises(ConfigError, match="has none that torch can use"):
        device.probe_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.device: should be 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        device.probe_device(name)
