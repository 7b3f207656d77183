"""Joules that this machine took, by its own counters: RAPL of processors, NVML of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_RAPL = Path("/sys/class/powercap")


class Meter:
    """`joules` after the block: of all packages and GPUs of the machine; None where none counts."""

    def __init__(self, rapl: Path = _RAPL) -> None:
        self._packages = sorted(rapl.glob("intel-rapl:[0-9]")) if rapl.is_dir() else []
        self.joules: float | None = None

    def __enter__(self) -> Meter:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._read()
        spent = [self._spent(name, after[name]) for name in self._before if name in after]
        self.joules = sum(spent) if spent else None

    def _read(self) -> dict[str, float]:
        found = {}
        for package in self._packages:
            try:
                found[str(package)] = int((package / "energy_uj").read_text()) / 1e6
            except (OSError, ValueError):  # only root may read it on most systems
                continue
        return found | _gpus()

    def _spent(self, name: str, now: float) -> float:
        if now >= self._before[name]:
            return now - self._before[name]
        whole = int((Path(name) / "max_energy_range_uj").read_text()) / 1e6
        return now + whole - self._before[name]


def _gpus() -> dict[str, float]:
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        found: dict[str, Any] = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found[f"gpu{index}"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        return found
    except pynvml.NVMLError:
        return {}
