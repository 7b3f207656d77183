"""Where the time of a step goes, of the cells that were profiled."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.bench.comm_stages import format_seconds
from ds_llama.bench.report.document import Block, Folded, Heading, Table, Text
from ds_llama.bench.report.groups import Group
from ds_llama.bench.report.row import Profile
from ds_llama.bench.report.words import percent

_NAMED = 3  # operations that are seen without being asked for
_LONG = 60  # characters; a template kernel's name has hundreds
_CLOCKS = {"cpu": "self CPU time", "device": "self device time"}


def profile_blocks(group: Group) -> Iterator[Block]:
    """A table a profiled cell, its first operations in sight."""
    known = [(cell, found) for cell in group.cells if (found := group.measured(cell).profile)]
    if not known:
        return
    yield Heading("Where the time goes, by profile", 3)
    for cell, found in known:
        first = ", ".join(
            f"{_short(each.name)} {percent(each.self_s / found.self_s)}"
            for each in found.operations[:_NAMED]
        )
        yield Folded(f"{group.name(cell)}: {first}", (_table(found),))
    clocks = " or ".join(dict.fromkeys(_CLOCKS.get(f.clock, f.clock) for _, f in known))
    yield Text(
        f"Shares of the {clocks} of all operations of a step of rank 0: what an operation takes "
        "without those within it, as torch's profiler has it, in steps beside the measured ones. "
        "Whole traces are in the benchmark's folder, in profiles.",
        "note",
    )


def _table(found: Profile) -> Table:
    rows = [
        (
            _short(each.name),
            percent(each.self_s / found.self_s),
            format_seconds(each.self_s),
            f"{each.calls:,.0f}",
        )
        for each in found.operations
    ]
    rest = found.self_s - sum(each.self_s for each in found.operations)
    if rest > 0:
        rows.append(("all others", percent(rest / found.self_s), format_seconds(rest), ""))
    return Table(("operation", "share", "a step", "calls"), tuple(rows))


def _short(name: str) -> str:
    return name if len(name) <= _LONG else f"{name[: _LONG - 1]}…"
