"""Cores by cgroup: quotas of version 1 and 2, of the process's own group and of those above."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ds_llama.launcher.cores import usable_cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="cores are counted by affinity here"
)
MANY = set(range(64))


@pytest.fixture(autouse=True)
def sixty_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: MANY)


def cores(folder: Path, line: str, files: dict[str, str]) -> int:
    own = folder / "cgroup"
    own.write_text(line)
    for name, content in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return usable_cores(folder / "fs", own)


@pytest.mark.parametrize(
    ("line", "files", "wanted"),
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "750000 100000\n"}, 7),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "800000 100000"}, 3),
        ("0::/elsewhere\n", {"cpu.max": "400000 100000\n"}, 4),
        (
            "5:memory:/x\n4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            "4:cpuacct,cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            64,
        ),
        ("0::/\n", {"cpu.max": "torn"}, 64),
        ("no line\n", {}, 64),
    ],
)
def test_quotas(tmp_path: Path, line: str, files: dict[str, str], wanted: int) -> None:
    assert cores(tmp_path, line, files) == wanted


def test_where_there_are_no_cgroups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "none") == 64
