"""`ds-llama simulate`: the real engine over fake tensors, at any world size."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ds_llama.simulator.result import Simulation


class Device(str, Enum):
    """Words of `--device`."""

    sim = "sim"
    cpu = "cpu"


def command(
    run: Annotated[Path, typer.Argument(help="A run JSON.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Laid over the run."),
    ] = None,
    world_size: Annotated[int, typer.Option(help="GPUs of the whole run.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    device: Annotated[
        Device, typer.Option(help='"cpu" as on a CPU run, where host and device are one.')
    ] = Device.sim,
    rank: Annotated[int, typer.Option(help="Whose memory to show.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps to simulate; the last one is shown.")] = 2,
) -> int:
    """Construct, register and step through the real DeepSpeed engine without memory or GPUs.

    Prints the bytes that a rank holds in each phase. Neither data nor weights are read, and nothing
    is written.
    """
    from ds_llama.config import load_run
    from ds_llama.simulator import simulate

    found = simulate(
        load_run(run, *(overrides or [])),
        world_size,
        device="cpu" if device is Device.cpu else "sim",
        rank=rank,
        steps=steps,
    )
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        show(found)
    return 0


def show(found: Simulation) -> None:
    """The table of phases."""
    from rich.console import Console
    from rich.table import Table

    from ds_llama.units import format_bytes, format_count

    table = Table(
        title=f"{format_count(found.parameters)} parameters, stage {found.stage}, "
        f"rank {found.rank} of {found.world_size}",
        title_justify="left",
    )
    places = ["total"] if found.device == "cpu" else ["device", "host", "total"]
    table.add_column("phase")
    for place in places:
        table.add_column(f"{place} end", justify="right")
        table.add_column("peak", justify="right")
    for phase in found.phases:
        row: list[Any] = [phase.name]
        for place in places:
            part = getattr(phase, place)
            row += [format_bytes(part.now_bytes), format_bytes(part.peak_bytes)]
        table.add_row(*row)
    Console().print(table)
