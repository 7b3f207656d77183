"""From cells to a document: what to take first, then each group, then what was not measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ds_llama.bench.report import advise, collectives, limits, tables
from ds_llama.bench.report.advise import Advice
from ds_llama.bench.report.changes import change_blocks
from ds_llama.bench.report.compare import Comparison
from ds_llama.bench.report.document import (
    Block,
    Document,
    Folded,
    Heading,
    Items,
    Pictures,
    Table,
    Text,
)
from ds_llama.bench.report.folder import Folder
from ds_llama.bench.report.groups import Group, full_name
from ds_llama.bench.report.plots import pictures
from ds_llama.bench.report.profiles import profile_blocks
from ds_llama.bench.report.row import Cell, Peak
from ds_llama.bench.report.words import NOT_MEASURED, counted, listed, rate
from ds_llama.units import format_bytes

_NEITHER = "No cell was measured; the reasons are below."
_FEW = 6  # cells whose names are shown without being asked for


def document(
    folder: Folder, found: Sequence[tuple[Group, Advice]], comparison: Comparison | None = None
) -> Document:
    """The whole report. `found`: the groups in order, each with what to take of it."""
    measured = [(group, advice) for group, advice in found if group.cells]
    blocks: list[Block] = list(_head(folder, measured))
    if comparison is not None:
        blocks += change_blocks(comparison)
    if (scaling := tables.ranks(folder.cells)) is not None:
        blocks += [Heading("More ranks", anchor="ranks"), scaling]
    for group, advice in measured:
        blocks += _group(group, advice, "" if len(measured) == 1 else f"-{group.slug}")
    if folder.comm is not None:
        blocks += collectives.blocks(folder.comm)
    blocks += _failed([cell for group, _ in found for cell in group.failed])
    if measured:
        blocks += _method(folder)
    blocks += _provenance(folder)
    return Document(f"Benchmark {folder.name}", tuple(blocks))


def _head(folder: Folder, measured: Sequence[tuple[Group, Advice]]) -> Iterator[Block]:
    if folder.description:
        yield Text(folder.description)
    if not folder.cells:
        return
    number = sum(cell.measured is not None for cell in folder.cells)
    words = [f"{number} of {len(folder.cells)} cells measured", *_machine(folder.cells)]
    yield Text("; ".join(words) + ".", "note")
    if not measured:
        yield Text(_NEITHER, "advice")
    if len(measured) == 1:
        group, advice = measured[0]
        yield Text(" ".join(advise.sentences(group, advice)), "advice")
    elif measured:
        yield tables.overview(measured)


def _machine(cells: Sequence[Cell]) -> Iterator[str]:
    """Device, ranks, threads and what a product of matrices reaches, as the rows have them."""
    launches = [launch for cell in cells if cell.measured for launch in cell.measured.repeats]
    about = _about(cells)
    devices = sorted({launch.device for launch in launches if launch.device})
    for device in devices:
        name = about.get("processor") if device == "cpu" else None
        yield f"{name} ({about.get('cores')} cores)" if name else device
    threads = sorted({launch.threads for launch in launches if launch.threads})
    if threads and devices == ["cpu"]:
        most = counted(threads[-1], "thread")
        yield f"{' or '.join([*map(str, threads[:-1]), most])} a rank"
    rates: dict[str, list[Peak]] = {}
    for cell in cells:
        if cell.measured and cell.measured.peak_flops:
            rates.setdefault(cell.precision, []).append(cell.measured.peak_flops)
    for precision, each in rates.items():
        low, high = (rate(pick(peak.measured for peak in each)) for pick in (min, max))
        vendor = each[0].vendor
        beside = "" if vendor is None else f" (the vendor says {rate(vendor)})"
        said = low if low == high else f"{low} to {high}"
        yield f"{precision} product of matrices {said} a rank{beside}"


def _about(cells: Sequence[Cell]) -> Mapping[str, Any]:
    return next((c.measured.provenance for c in cells if c.measured and c.measured.provenance), {})


def _group(group: Group, advice: Advice, suffix: str) -> Iterator[Block]:
    yield Heading(group.title, anchor=group.slug)
    if group.shared:
        yield Text(f"All cells: {group.shared}.", "note")
    if suffix:
        yield Text(" ".join(advise.sentences(group, advice)), "advice")
    yield tables.speeds(group, advice)
    drawn = pictures(group, advice, suffix)
    if drawn:
        yield Pictures(tuple(drawn))
    yield Heading("What limits each cell", 3)
    said = ((group.name(cell), " ".join(limits.sentences(group, cell))) for cell in group.cells)
    yield Items(tuple(said))
    yield from profile_blocks(group)
    if len(group.cells) > 1:
        yield Heading("The same training?", 3)
        yield from tables.parity_blocks(group)
    yield from tables.traffic_blocks(group)


def _failed(cells: Sequence[Cell]) -> Iterator[Block]:
    """Reasons, each once, with the cells that it is the reason of."""
    if not cells:
        return
    yield Heading("Not measured", anchor="not-measured")
    reasons: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        # The numbers in "3 GiB a device" differ from cell to cell; the rule is the reason.
        reasons.setdefault((cell.status, cell.rule or cell.reason or "no reason"), []).append(cell)
    for (status, why), each in sorted(reasons.items(), key=lambda item: -len(item[1])):
        several = {cell.reason for cell in each}
        rule = f" by {each[0].rule}" if each[0].rule else ""
        count = counted(len(each), "cell")
        reason = f"{each[0].reason or why}" if len(several) == 1 else "reasons below"
        yield Text(f"{count} {_STATUS.get(status, status)}{rule}: {reason}.".replace("..", "."))
        names = tuple((full_name(c), (c.reason or "") if len(several) > 1 else "") for c in each)
        if len(each) <= _FEW and len(several) == 1:
            yield Text("; ".join(name for name, _ in names), "note")
        else:
            rows = Table(("cell", "reason") if len(several) > 1 else ("cell",), (), 2)
            width = len(rows.head)
            filled = Table(rows.head, tuple(name[:width] for name in names), 2)
            yield Folded(f"which {len(each)}", (filled,))


# Of a row's config; the rest is a run's whole JSON.
_CONFIG = ("seed", "threads", "affinity")
_STATUS = {
    "refused": "refused",
    "oom": "out of memory",
    "timeout": "out of time",
    "error": "failed",
}


def _method(folder: Folder) -> Iterator[Block]:
    yield Heading("How this was measured", anchor="how")
    launches = [len(cell.measured.step_s.medians) for cell in folder.cells if cell.measured]
    few, many = min(launches), max(launches)
    times = counted(few, "launch", "launches") if few == many else f"{few} to {many} launches"
    counters = {n: None for c in folder.cells if c.measured for n in c.measured.joules_of}
    energy = [("Energy", f"of the whole machine: {listed([*counters])}.")] if counters else []
    measured = [cell.measured for cell in folder.cells if cell.measured]
    held = any(each.memory.measured for each in measured)
    parted = any(each.parts_s for each in measured)
    yield Items(
        (
            (
                "Time",
                f"every cell in processes of its own, {times}, all cells once before any a second "
                "time. Medians over all measured steps, wall time from the end of one step to the "
                "end of the next; ranges from the slowest launch to the fastest.",
            ),
            ("Tokens", "those that the loss counts: each sequence's but its first."),
            (
                "MFU",
                "the model's FLOPs as a share of a product of matrices of the same type, measured "
                "in the same launch; HFU counts what is computed twice twice.",
            ),
            (
                "Memory",
                "live tensor bytes of a rank, the largest over ranks, counted at every allocation. "
                "A CPU has one memory: all of it is the device's, and what an offload would spare "
                "a GPU is not seen there (ds-llama plan and simulate tell)."
                if held
                else f"{NOT_MEASURED}, and neither are traffic and HFU; the process's own is.",
            ),
            (
                "Phases",
                "further steps, in which every collective and copy is waited for at once."
                if parted
                else f"{NOT_MEASURED}.",
            ),
            *energy,
        )
    )


def _provenance(folder: Folder) -> Iterator[Block]:
    """What the rows say of where they were made; where they differ, every value."""
    found: dict[str, dict[str, None]] = {}
    every = [(folder.comm.provenance or {}) if folder.comm else {}]
    for cell in folder.cells:
        if cell.measured is not None:
            config = cell.measured.config or {}
            own = {key: config[key] for key in _CONFIG if key in config}
            every.append({**(cell.measured.provenance or {}), **own})
    for about in every:
        for key, value in about.items():
            found.setdefault(key, {})[_value(key, value)] = None
    if found:
        yield Heading("Provenance", anchor="provenance")
        items = ((key.removesuffix("_bytes"), "; ".join(each)) for key, each in found.items())
        yield Items(tuple(items))


def _value(key: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if key.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
