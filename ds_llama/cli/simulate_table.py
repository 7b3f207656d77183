"""The tables of `ds-llama simulate`: memory by phase, what moved beside the paper, and FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ds_llama.units import format_bytes, format_count

if TYPE_CHECKING:
    from ds_llama.simulator.result import Simulation


def show(found: Simulation, label: str | None = None) -> None:
    """Print one simulation."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console()
    console.print(_phases(found, label, console.width))
    for line in _lines(found):
        inset = len(line) - len(line.lstrip())
        console.print(Padding.indent(line.lstrip(), inset), highlight=False)
    console.print()


def _phases(found: Simulation, label: str | None, width: int) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"{format_count(found.parameters)} parameters, {label or f'stage {found.stage}'}, "
        f"rank {found.rank} of {found.world_size}",
        title_justify="left",
    )
    places = ["total"] if found.device == "cpu" else ["device", "host", "total"][: 2 + (width > 72)]
    table.add_column("phase", no_wrap=True)
    for place in places:
        table.add_column(f"{place} end", justify="right")
        table.add_column("peak", justify="right")
    for phase in found.phases:
        row: list[Any] = [phase.name]
        for place in places:
            part = getattr(phase, place)
            row += [format_bytes(part.now_bytes), format_bytes(part.peak_bytes)]
        table.add_row(*row)
    return table


def _peaks(found: Simulation) -> Iterator[str]:
    """What the largest peak of each place is made of."""
    for place in ("device", "host") if found.device != "cpu" else ("total",):
        worst = max(found.phases, key=lambda phase: getattr(phase, place).peak_bytes)
        parts = {k: n for k, n in getattr(worst, place).peak.items() if n}
        if parts:
            split = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
            yield f"{place} peak, in {worst.name}: {split}"


def _lines(found: Simulation) -> Iterator[str]:
    yield from _peaks(found)
    moved, paper = found.moved, found.theory
    sent = [f"{kind} {format_bytes(size)}" for kind, size in moved["collectives"].items()]
    yield f"collectives of a step: {', '.join(sent) or 'none'}"
    if sent and found.world_size == 1:
        yield "  one rank: what is called stays on it, and nothing is sent"
    elif sent:
        yield (
            f"  {paper['measured_volumes']:g} parameter volumes, an all_reduce counted twice; "
            f"the ZeRO paper has {paper['paper_volumes']}"
        )
        for cause, size in paper["gaps"].items():
            yield f"  {'+' if size > 0 else '-'}{format_bytes(abs(size))}: {cause}"
    links = {
        "host to device": moved["to_device_bytes"],
        "device to host": moved["to_host_bytes"],
        "read from NVMe": moved["nvme_read_bytes"],
        "written to NVMe": moved["nvme_write_bytes"],
    }
    if any(links.values()):
        yield ", ".join(f"{name} {format_bytes(size)}" for name, size in links.items() if size)
    if found.flops and found.hardware_flops:
        again = found.hardware_flops / found.flops - 1
        yield f"{found.flops:.4g} FLOPs of the model a step, {again:.1%} more computed twice"
