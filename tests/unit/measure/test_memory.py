from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch

from ds_llama.measure import memory

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def _touch(size: int) -> None:
    """Resident for a moment: mapped, written page by page, given back."""
    with mmap.mmap(-1, size) as region:
        for offset in range(0, size, mmap.PAGESIZE):
            region[offset] = 1


@linux
def test_peak_is_seen_and_reset() -> None:
    if not memory.reset_peak_rss():
        pytest.skip("this kernel does not let a process reset its peak")
    before = memory.process_memory()
    assert before.rss_bytes is not None
    assert before.peak_rss_bytes is not None
    assert abs(before.peak_rss_bytes - before.rss_bytes) < 16 * MIB
    _touch(96 * MIB)
    after = memory.process_memory()
    assert after.rss_bytes is not None
    assert after.peak_rss_bytes is not None
    assert after.peak_rss_bytes - before.rss_bytes > 80 * MIB
    assert after.rss_bytes - before.rss_bytes < 48 * MIB
    assert memory.reset_peak_rss()
    again = memory.process_memory().peak_rss_bytes
    assert again is not None
    assert again < after.peak_rss_bytes - 48 * MIB


@linux
def test_a_watch_says_what_was_taken_while_it_was_entered() -> None:
    if not memory.reset_peak_rss():
        pytest.skip("this kernel does not let a process reset its peak")
    with memory.Watch() as watch:
        _touch(96 * MIB)
    assert watch.peak_bytes is not None
    assert watch.held_bytes is not None
    assert watch.peak_bytes - watch.held_bytes > 48 * MIB
    watch.seconds, watch.peak_bytes, watch.held_bytes = 1.5, 3 * MIB, 2 * MIB
    assert str(watch).startswith("1.5 s, peak 3 MiB (2 MiB held after)")
    watch.device_peak_bytes = 5 * MIB
    assert str(watch) == "1.5 s, peak 3 MiB (2 MiB held after), 5 MiB on the device"
    watch.peak_bytes = watch.device_peak_bytes = None
    assert str(watch) == "1.5 s"


def test_status_is_read_in_kibibytes() -> None:
    status = "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t   1024 kB\nThreads:\t1\n"
    assert memory.parse_status(status).to_dict() == {
        "rss_bytes": 1024 * 1024,
        "peak_rss_bytes": 2048 * 1024,
    }
    assert memory.parse_status("Name:\tkernel thread\n") == memory.ProcessMemory(None, None)


def test_a_system_without_proc_has_no_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "folder" / "none")
    found = memory.process_memory()
    assert found.peak_rss_bytes is None
    assert found.rss_bytes is None or (sys.platform == "darwin" and found.rss_bytes > MIB)
    assert not memory.reset_peak_rss()


def test_a_cpu_has_no_device_memory() -> None:
    memory.reset_device_peaks("cpu")
    assert set(memory.device_memory("cpu").to_dict().values()) == {None}


def test_the_columns_of_a_row() -> None:
    row = memory.snapshot()
    assert list(row) == [
        "device_allocated_bytes",
        "device_peak_bytes",
        "rss_bytes",
        "peak_rss_bytes",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_peaks_are_the_allocators() -> None:
    memory.reset_device_peaks("cuda")
    start = memory.device_memory("cuda")
    x = torch.empty(32 * MIB, dtype=torch.uint8, device="cuda")
    del x
    end = memory.device_memory("cuda")
    assert end.device_allocated_bytes == start.device_allocated_bytes
    assert end.device_peak_bytes == (start.device_allocated_bytes or 0) + 32 * MIB
