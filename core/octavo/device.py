"""What this machine offers: its GPUs, or its CPU. torch is imported only where a GPU may be."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Final

from octavo.errors import ConfigError
from octavo.records import DeviceProfile

_PATH: Final = "model.device"
_MEMINFO: Final = Path("/proc/meminfo")
_CPUINFO: Final = Path("/proc/cpuinfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
# NVIDIA, WSL, ROCm and Jetson. Where none of these is there, torch need not be asked, which saves its import.
_GPU_NODES: Final = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")


def probe_device(name: str = "auto") -> DeviceProfile:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the first GPU, else the CPU.

    Probing a GPU opens a CUDA context in this process, so do it where the engine runs. Raises
    :class:`ConfigError` for another name and for a GPU that is not there.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"should be 'auto', 'cpu', 'cuda' or 'cuda:N', not {name!r}.", _PATH)
    if name == "cpu" or (name == "auto" and not _may_have_gpu()):
        return probe_cpu()
    if name == "auto":
        return _probe_cuda(0) if _gpu_count() else probe_cpu()
    index = int(match[1] or 0)
    count = _gpu_count()
    if index >= count:
        there = f"has {count} (cuda:0 to cuda:{count - 1})" if count else "has none that torch can use"
        raise ConfigError(f"{name!r} is not there: this machine {there}.", _PATH)
    return _probe_cuda(index)


def probe_cpu() -> DeviceProfile:
    """The CPU, as much of it as this process may use."""
    total, free = _cpu_memory()
    return DeviceProfile(
        type="cpu",
        index=0,
        name=_cpu_name(),
        capability=None,
        total_memory=total,
        free_memory=free,
        cores=_cpu_cores(),
    )


def _may_have_gpu() -> bool:
    return sys.platform != "darwin" and (
        sys.platform != "linux" or any(os.path.exists(node) for node in _GPU_NODES)
    )


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _probe_cuda(index: int) -> DeviceProfile:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return DeviceProfile(
        type="cuda",
        index=index,
        name=properties.name,
        capability=(properties.major, properties.minor),
        total_memory=total,
        free_memory=free,
        cores=properties.multi_processor_count,
    )


def _cpu_memory() -> tuple[int, int]:
    """Total and free bytes, within the limit of the container if there is one."""
    try:
        lines = _MEMINFO.read_text().splitlines()
        fields = {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}
        total, free = fields["MemTotal"], fields["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        total = free = _system_memory()
    limit = _read_number("memory.max")
    if limit is not None and limit < total:
        # Cached files count as used, but make room when it is needed.
        used = (_read_number("memory.current") or 0) - _cached_files()
        total, free = limit, min(free, max(0, limit - max(0, used)))
    return total, free


def _cached_files() -> int:
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):
        return 0


def _system_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 << 30


def _read_number(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):  # "max" means no limit
        return None


def _cpu_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def _cpu_name() -> str:
    try:
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"
