"""Memory of the process and of its device, as the operating system and the allocator count it.

Sizes are bytes; None means that this machine cannot say. Unlike `measure.accounting` these numbers
depend on the allocator and the machine: they are what a job is killed for.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ds_llama.units import format_bytes, format_duration

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK_RSS = "5"  # proc(5): "Reset the peak resident set size to the current value"


@dataclass(frozen=True)
class ProcessMemory:
    """Resident set size of this process: now, and its peak since the last reset."""

    rss_bytes: int | None
    peak_rss_bytes: int | None

    def to_dict(self) -> dict[str, int | None]:
        return asdict(self)


@dataclass(frozen=True)
class DeviceMemory:
    """What torch's caching allocator handed out (allocated) and took from the device (reserved)."""

    device_allocated_bytes: int | None = None
    device_peak_bytes: int | None = None
    device_reserved_bytes: int | None = None
    device_peak_reserved_bytes: int | None = None

    def to_dict(self) -> dict[str, int | None]:
        return asdict(self)


def process_memory() -> ProcessMemory:
    """VmRSS and VmHWM on Linux; on macOS psutil's figure and no peak.

    `resource.getrusage` has a peak on macOS, but one that cannot be reset: it would show one
    phase's peak in every phase after it, so it is not used.
    """
    try:
        status = _STATUS.read_text(encoding="utf-8")
    except OSError:
        return ProcessMemory(_rss_elsewhere(), None)
    return parse_status(status)


def parse_status(status: str) -> ProcessMemory:
    """Read the text of /proc/PID/status; its "kB" are 1024 bytes."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)

    def size(key: str) -> int | None:
        parts = fields.get(key, "").split()
        return int(parts[0]) * 1024 if parts else None

    return ProcessMemory(size("VmRSS"), size("VmHWM"))


def reset_peak_rss() -> bool:
    """Set the peak to the present size; False where the kernel does not allow it."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK_RSS, encoding="ascii")
    except OSError:
        return False
    return True


def device_memory(device: torch.device | str) -> DeviceMemory:
    """The allocator's counters of a CUDA (or ROCm) device; all None on a CPU."""
    if torch.device(device).type != "cuda":
        return DeviceMemory()
    return DeviceMemory(
        device_allocated_bytes=torch.cuda.memory_allocated(device),
        device_peak_bytes=torch.cuda.max_memory_allocated(device),
        device_reserved_bytes=torch.cuda.memory_reserved(device),
        device_peak_reserved_bytes=torch.cuda.max_memory_reserved(device),
    )


def snapshot() -> dict[str, int | None]:
    """The memory columns of a metrics row, for this process and its current device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = device_memory(device)
    return {
        "device_allocated_bytes": found.device_allocated_bytes,
        "device_peak_bytes": found.device_peak_bytes,
        **process_memory().to_dict(),
    }


def everything(device: torch.device | str) -> dict[str, int | None]:
    """All counters of a device type's current device and of this process."""
    return {**device_memory(device).to_dict(), **process_memory().to_dict()}


def reset_peaks(device: torch.device | str) -> None:
    """Start every peak of `everything` anew."""
    reset_device_peaks(device)
    reset_peak_rss()


def reset_device_peaks(device: torch.device | str) -> None:
    """Start the device's peaks anew, as after warm-up."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class Watch:
    """Time and memory of what is done while it is entered; peaks are counted anew from there."""

    def __enter__(self) -> Watch:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._resettable = reset_peak_rss()
        reset_device_peaks(self._device)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        process, device = process_memory(), device_memory(self._device)
        self.peak_bytes = process.peak_rss_bytes if self._resettable else None
        self.held_bytes, self.device_peak_bytes = process.rss_bytes, device.device_peak_bytes

    def __str__(self) -> str:
        """ "1.5 s, peak 1.2 GiB (1.1 GiB held after)"; without what this machine cannot say."""
        words = [format_duration(self.seconds)]
        if self.peak_bytes is not None and self.held_bytes is not None:
            held = format_bytes(self.held_bytes)
            words.append(f"peak {format_bytes(self.peak_bytes)} ({held} held after)")
        if self.device_peak_bytes is not None:
            words.append(f"{format_bytes(self.device_peak_bytes)} on the device")
        return ", ".join(words)


def _rss_elsewhere() -> int | None:
    if sys.platform != "darwin":
        return None
    import psutil

    return int(psutil.Process().memory_info().rss)
