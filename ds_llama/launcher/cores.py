"""How many cores this process may compute on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Cores that the scheduler lets this process use, and no more than its cgroups have time for.

    A container with `--cpus 4` sees all the cores of its host. A thread on each of them would use
    up the time of four in a part of every period, and all of them wait for the rest of it.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min([there or 1, *_quotas(cgroups, own)])))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Cores' worth of time in a period: of the process's cgroup and of each above it.

    A line of `own` is "0::/path" (cgroup v2: cpu.max has "QUOTA PERIOD", or "max" for no limit), or
    "4:cpu,cpuacct:/path" (v1: two files, and -1 for no limit). Where the paths are another
    namespace's, what is there is that of the container itself.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or "cpu" in controllers.split(","):
            root = cgroups if number == "0" else cgroups / "cpu"
            folder = root / path.lstrip("/")
            for each in (folder, *folder.parents):
                yield from _quota(each)
                if each == root:
                    break


def _quota(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no limit
        return
    if share > 0:
        yield share
