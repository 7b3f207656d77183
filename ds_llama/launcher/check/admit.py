"""The preflight before a run: one line when nothing is wrong, the problems otherwise."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ds_llama.config.run import Run
from ds_llama.launcher.check.preflight import preflight
from ds_llama.launcher.hostfile import Host
from ds_llama.units import format_duration


def unfit(hosts: Sequence[Host], run: Run | None) -> set[str]:
    """Names of the hosts that `run` cannot start on; errors and warnings are printed to stderr.

    Without the all-reduce of `launch check`: the ranks are about to do one. Raises as `preflight`.
    """
    report = preflight(hosts, run)
    for problem in report.problems:
        if problem.severity != "note":
            print(f"{problem}\n", file=sys.stderr)
    bad = {problem.host for problem in report.problems if problem.severity == "error"}
    count, took = f"{len(hosts)} host{'s' * (len(hosts) != 1)}", format_duration(report.took_s)
    found = f"{len(bad)} cannot be used" if bad else "ready"
    print(f"{count} checked in {took}: {found}", file=sys.stderr, flush=True)
    return bad
