"""Joules that this machine took, by its own counters: RAPL of processors, NVML of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_RAPL = Path("/sys/class/powercap")


class Meter:
    """Energy of the whole machine while entered, whoever used it.

    After the block: `joules` of everything in `counted` together ("package-0", "gpu0"), None where
    nothing counts. Processors are left out altogether where one of them may not be read (most
    systems let root alone), since half of them is no sum. DRAM and what is neither processor nor
    GPU is in none of it. A counter that has wrapped around has done so once: a package's range is
    minutes at full power at least (max_energy_range_uj).
    """

    def __init__(self, rapl: Path = _RAPL) -> None:
        # "intel-rapl:0" is a package, or "psys", which has the packages in it; AMD's are so named
        # too. "intel-rapl:0:0" and "intel-rapl-mmio:0" are parts of a package and the same again.
        zones = sorted(rapl.glob("intel-rapl:*")) if rapl.is_dir() else []
        names = {zone: _text(zone / "name") for zone in zones if zone.name.count(":") == 1}
        self._packages = {str(name): zone for zone, name in names.items() if _is_package(name)}
        self.joules: float | None = None
        self.counted: list[str] = []

    def __enter__(self) -> Meter:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._read()
        self.counted = [name for name in self._before if name in after]
        spent = [self._spent(name, after[name]) for name in self.counted]
        self.joules = sum(spent) if spent else None

    def _read(self) -> dict[str, float]:
        found = {name: _text(zone / "energy_uj") for name, zone in self._packages.items()}
        if not all(text is not None and text.isdigit() for text in found.values()):
            found = {}
        return {name: int(str(text)) / 1e6 for name, text in found.items()} | _gpus()

    def _spent(self, name: str, now: float) -> float:
        spent = now - self._before[name]
        if spent < 0 and name in self._packages:
            spent += int(_text(self._packages[name] / "max_energy_range_uj") or 0) / 1e6
        return spent


def _is_package(name: str | None) -> bool:
    return name is not None and name.startswith("package")


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


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
