"""What `ds-llama launch check` shows a person: every problem with its remedy, then the hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from ds_llama.launcher.check.problems import SEVERITIES, Problem
from ds_llama.units import format_bytes, format_decimal_bytes, format_duration

if TYPE_CHECKING:
    from rich.table import Table

    from ds_llama.launcher.check.preflight import Report

# Narrower terminals get a column less: what is on a host stands under its name then.
_WIDE_COLUMNS = 100


def show(report: Report, file: IO[str]) -> None:
    """The table of problems, if there are any, and one line that sums up."""
    from rich.console import Console

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if report.problems:
        console.print(_problems(report.problems, wide=console.width >= _WIDE_COLUMNS))
    for line in (summary(report), *_allreduce(report)):
        console.print(line, soft_wrap=True)


def summary(report: Report) -> str:
    """One line: how many hosts, how long, what was found."""
    counts = [(word, sum(each.severity == word for each in report.problems)) for word in SEVERITIES]
    words = [f"{count} {word}{'s' * (count != 1)}" for word, count in counts if count]
    hosts = f"{len(report.heard)} host{'s' * (len(report.heard) != 1)}"
    return f"{hosts} in {format_duration(report.took_s)}: {', '.join(words) or 'nothing is wrong'}"


def _allreduce(report: Report) -> Iterator[str]:
    """What the ranks measured together."""
    found = report.allreduce
    if found is not None and found["ok"]:
        ways = ", ".join(sorted({str(name or "any") for name in found["interfaces"].values()}))
        yield (
            f"all-reduce of {found['ranks']} ranks ({found['backend']} over {ways}): "
            f"{format_bytes(found['bytes'])} in {found['allreduce_s'] * 1000:.1f} ms, "
            f"{format_decimal_bytes(found['bus_bytes_per_s'])}/s; "
            f"{format_duration(found['took_s'])} with the start"
        )


def gathered(problems: tuple[Problem, ...]) -> list[tuple[Problem, list[str]]]:
    """The same problem of many hosts once, with their names; errors first."""
    found: dict[tuple[str, str, str], tuple[Problem, list[str]]] = {}
    for problem in sorted(problems, key=lambda each: SEVERITIES.index(each.severity)):
        key = (problem.code, problem.message, problem.remedy)
        found.setdefault(key, (problem, []))[1].append(problem.host)
    return list(found.values())


def _problems(problems: tuple[Problem, ...], *, wide: bool) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, expand=False)
    table.add_column("host", overflow="fold", no_wrap=False)
    if wide:
        table.add_column("", overflow="fold")
        table.add_column("problem", overflow="fold")
        table.add_column("remedy", overflow="fold")
    else:
        table.add_column("problem, and its remedy", overflow="fold")
    for problem, hosts in gathered(problems):
        names = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
        if wide:
            table.add_row(names, problem.severity, problem.message, problem.remedy)
        else:
            table.add_row(names, f"{problem.severity}: {problem.message}\n  -> {problem.remedy}")
    return table
