"""The tables of a report: an overview of groups, and of each group speed, parity and traffic."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from ds_llama.bench.report.advise import Advice, speed
from ds_llama.bench.report.document import (
    Beyond,
    Block,
    Heading,
    Items,
    Table,
    Text,
    without_empty_columns,
)
from ds_llama.bench.report.groups import EXACT, HALF, PARITY, Group, Limits, full_name
from ds_llama.bench.report.row import Cell, Measured
from ds_llama.bench.report.words import NOT_MEASURED, listed, percent, signed
from ds_llama.units import format_bytes

_DASH = "-"
_ALIKE = {
    *("program", "model", "stage", "offload", "precision", "recompute", "compile"),
    *("micro_batch_size", "accumulation", "sequence_length"),
}


def overview(found: Sequence[tuple[Group, Advice]]) -> Table:
    """What to take of each group."""
    rows = []
    for group, advice in found:
        take, least = advice.take, advice.cheapest
        rows.append(
            (
                group.title,
                group.name(take) if take else "none",
                f"{group.measured(take).tokens_per_s:,.0f}" if take else _DASH,
                size(group.measured(take).memory_bytes) if take else _DASH,
                group.name(least) if least else _DASH,
                size(group.measured(least).memory_bytes) if least else _DASH,
                f"{group.measured(least).tokens_per_s:,.0f}" if least else _DASH,
            )
        )
    head = ("work", "take", "tokens/s", "peak", "holds least", "peak", "tokens/s")
    return Table(head, tuple(rows), 2, links=tuple(group.slug for group, _ in found))


def ranks(cells: Sequence[Cell]) -> Table | None:
    """Cells that differ in their number of ranks only, each beside the one with the fewest."""
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.measured is not None:
            axes = cell.model_dump(include=_ALIKE)
            alike.setdefault(json.dumps(axes, sort_keys=True), []).append(cell)
    rows = list[tuple[str, ...]]()
    for each in alike.values():
        each.sort(key=lambda cell: cell.world_size)
        rows += [_ranks(cell, each[0]) for cell in each if len(each) > 1]
    head = ("cell", "ranks", "tokens/s", "a device", "of the fewest's", "ranks a core")
    return without_empty_columns(Table(head, tuple(rows)), (_DASH,)) if rows else None


def _ranks(cell: Cell, fewest: Cell) -> tuple[str, ...]:
    mine, base = cell.measured, fewest.measured
    assert mine is not None
    assert base is not None
    cores = (mine.provenance or {}).get("cores") if mine.device == "cpu" else None
    crowd = cell.world_size / cores if cores else 0
    return (
        full_name(cell).removesuffix(f" on {cell.world_size}"),
        str(cell.world_size),
        f"{mine.tokens_per_s:,.0f}",
        f"{mine.tokens_per_s_per_device:,.0f}",
        percent(mine.tokens_per_s_per_device / base.tokens_per_s_per_device),
        f"{crowd:g}" if crowd > 1 else _DASH,
    )


def speeds(group: Group, advice: Advice) -> Table:
    """Speed, memory and what the plan said, a row a cell."""
    base = group.reference
    columns: list[tuple[str, Callable[[Cell, Measured], str]]] = [
        ("cell", lambda cell, m: group.name(cell)),
        ("tokens/s", lambda cell, m: f"{m.tokens_per_s:,.0f}"),
        ("range", _range),
        ("a device", lambda cell, m: f"{m.tokens_per_s_per_device:,.0f}"),
        ("x ref.", lambda cell, m: _times(m, base)),
        ("MFU", lambda cell, m: _share(m.mfu)),
        ("HFU", lambda cell, m: _share(m.hfu)),
        ("peak", lambda cell, m: size(m.memory_bytes)),
        ("at rest", lambda cell, m: size(_side(m, "device_steady_bytes"))),
        ("host", lambda cell, m: size(_side(m, "host_peak_bytes"))),
        ("planned peak", _planned),
        ("process", _process),
        ("J/token", lambda cell, m: _joules(m.joules_per_token)),
    ]
    rows = [
        tuple(column(cell, group.measured(cell)) for _, column in columns) for cell in group.cells
    ]
    marked = {number for number, cell in enumerate(group.cells) if cell is advice.take}
    table = Table(tuple(head for head, _ in columns), tuple(rows), marked=frozenset(marked))
    return without_empty_columns(table, (_DASH, "0 B"))


def parity_blocks(group: Group) -> Iterator[Block]:
    """Each cell's losses and norms beside the reference's."""
    assert group.reference is not None
    steps = min(len(group.measured(cell).losses) for cell in group.cells)
    rows = list[tuple[str, ...]]()
    for cell in group.cells:
        losses, gap = group.measured(cell).losses, group.parity(cell)
        first, last = (_loss(losses[index] if steps else None) for index in (0, steps - 1))
        if gap is None:
            rows.append((group.name(cell), first, "reference", last, "", ""))
            continue
        gaps = (gap.first_loss, gap.last_loss, gap.grad_norm)
        said = [
            Beyond(signed(value)) if name in gap.beyond else signed(value)
            for name, value in zip(PARITY, gaps, strict=True)
        ]
        rows.append((group.name(cell), first, said[0], last, *said[1:]))
    last = f"loss at step {steps}"
    yield Table(
        ("cell", "first loss", "to ref.", last, "to ref.", "grad norms to ref."), tuple(rows)
    )
    yield Text(
        f"Reference: {group.name(group.reference)}. Marked are a first loss, a last loss and the "
        f"norm of any step's gradient that are more than {_bounds(HALF)} away from it; "
        f"{_bounds(EXACT)} where both are fp32.",
        "note",
    )


def _bounds(limits: Limits) -> str:
    each = (limits.first_loss, limits.last_loss, limits.grad_norm)
    return listed([percent(bound) for bound in each])


def traffic_blocks(group: Group) -> Iterator[Block]:
    """What moved beside the paper's count, and the cause of every byte between them."""
    rows, gaps = [], dict[str, list[str]]()
    for cell in group.cells:
        moved = group.measured(cell).traffic
        if moved is None:
            continue
        theory, volumes = moved.theory, (_DASH, _DASH)
        if theory is not None:
            volumes = f"{theory.measured_volumes:.3g}", f"{theory.paper_volumes:.3g}"
            for cause, bytes_ in theory.gaps.items():
                sign = "+" if bytes_ > 0 else ""
                said = f"{group.name(cell)} {sign}{format_bytes(bytes_)}"
                gaps.setdefault(cause, []).append(said)
        both = [moved.to_device_bytes + moved.to_host_bytes]
        both.append(moved.nvme_read_bytes + moved.nvme_write_bytes)
        calls = str(round(sum(moved.calls.values()))) if moved.calls else _DASH
        total = size(moved.volume_bytes)
        rows.append((group.name(cell), total, calls, *volumes, *map(size, both)))
    if not any(row[1] not in (_DASH, "0 B") or row[5:] != ("0 B", "0 B") for row in rows):
        return
    yield Heading("What a rank moves in a step", 3)
    head = ("cell", "collectives", "calls", "volumes", "by the paper", "host link", "NVMe")
    yield without_empty_columns(Table(head, tuple(rows)), (_DASH, "0 B"))
    more = " What a cell moves beyond the paper's count, and why:" if gaps else ""
    yield Text(f"A volume: the bytes of all parameters once.{more}", "note")
    yield Items(tuple((listed(cells), cause) for cause, cells in gaps.items()))


def size(found: float | None) -> str:
    return _DASH if found is None else format_bytes(found)


def _range(cell: Cell, measured: Measured) -> str:
    found = speed(measured)
    return f"{found.low:,.0f} to {found.high:,.0f}"


def _times(measured: Measured, base: Cell | None) -> str:
    if base is None or base.measured is None:
        return _DASH
    return f"{measured.tokens_per_s / base.measured.tokens_per_s:.2f}"


def _share(value: float | None) -> str:
    return _DASH if value is None else percent(value)


def _side(measured: Measured, name: str) -> int | None:
    side = measured.memory.measured
    return None if side is None else int(getattr(side, name))


def _planned(cell: Cell, measured: Measured) -> str:
    planned, counted = measured.planned_peak_bytes, measured.memory_bytes
    if planned is None:
        return _DASH
    return signed(planned / counted - 1) if counted else size(planned)


def _process(cell: Cell, measured: Measured) -> str:
    """Of a GPU what its allocator held, else the process's own."""
    held = measured.memory.process or {}
    return size(held.get("device_peak_reserved_bytes") or held.get("peak_rss_bytes"))


def _joules(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3g}"


def _loss(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4f}"
