"""Joules from counters in files as the kernel has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_llama.bench.energy import Meter

RANGE_UJ = 262_143_328_850


class Tree:
    """/sys/class/powercap of a machine with two packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        zones = {
            "intel-rapl:0": "package-0",
            "intel-rapl:1": "package-1",
            "intel-rapl:2": "psys",  # the packages and the rest
            "intel-rapl:0:0": "core",  # a part of package-0
            "intel-rapl-mmio:0": "package-0",  # the same again, read in another way
        }
        for zone, name in zones.items():
            (folder / zone).mkdir(parents=True)
            (folder / zone / "name").write_text(name + "\n")
            (folder / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            self.set(zone, 1_000_000)
        (folder / "dtpm").mkdir()

    def set(self, zone: str, microjoules: int) -> None:
        (self.folder / zone / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    with Meter(tmp_path) as meter:
        tree.set("intel-rapl:0", 6_000_000)
        tree.set("intel-rapl:1", 3_500_000)
        for zone in ("intel-rapl:2", "intel-rapl:0:0", "intel-rapl-mmio:0"):
            tree.set(zone, 900_000_000)
    assert meter.joules == pytest.approx(5 + 2.5)
    assert meter.counted == ["package-0", "package-1"]


def test_a_counter_wraps_around(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.set("intel-rapl:0", RANGE_UJ - 2_000_000)
    with Meter(tmp_path) as meter:
        tree.set("intel-rapl:0", 1_000_000)
    assert meter.joules == pytest.approx(3)


def test_half_of_the_packages_is_no_sum(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tmp_path / "intel-rapl:1/energy_uj").unlink()  # as what only root may read
    with Meter(tmp_path) as meter:
        tree.set("intel-rapl:0", 6_000_000)
    assert meter.joules is None
    assert meter.counted == []


def test_a_machine_without_counters(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with Meter(folder) as meter:
            pass
        assert meter.joules is None
