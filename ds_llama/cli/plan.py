"""`ds-llama plan`: what each ZeRO strategy costs, what fits, which to take and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from ds_llama.errors import CallError


def command(
    run: Annotated[
        Path | None, typer.Argument(help="The run's JSON file.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="key.path=value, for instance data.sequence_length=8192", show_default=False
        ),
    ] = None,
    world_size: Annotated[int, typer.Option(help="GPUs, on all nodes together.")] = 8,
    gpu_memory: Annotated[str | None, typer.Option(help="Of one GPU, such as 80GiB.")] = None,
    host_memory: Annotated[str | None, typer.Option(help="Of one node, such as 512GiB.")] = None,
    nvme: Annotated[
        str | None, typer.Option(help="Free on one node, such as 4TiB; plans NVMe offload too.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Such as h100: predicts speed, knows its memory.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="The hardware's own number, else 8.", show_default=False)
    ] = None,
    internode: Annotated[
        str | None, typer.Option(help="A GPU's share of the network, such as 400Gb/s.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of one GPU for an hour.")] = None,
    largest: Annotated[
        str | None,
        typer.Option("--max", help="micro-batch or sequence: also find the largest that fits."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the recommended strategy's DeepSpeed JSON here.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Write this one instead of the recommended.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --write replace a file.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Recomputation where a strategy fits without, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine, for --hardware local.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where --calibrate writes instead.")] = None,
) -> None:
    """What each ZeRO strategy costs, what fits, which to take and why, in closed form."""
    if calibrate:
        _calibrate(out, as_json)
        return
    if run is None or out is not None:
        raise CallError(
            "plan which run?" if run is None else "--out says where --calibrate writes",
            where="RUN.json" if run is None else "--out",
            remedy="give a run's JSON file, or --calibrate without one",
        )
    from ds_llama.planner.advise import plan

    made = plan(
        str(run),
        *(overrides or []),
        world_size=world_size,
        gpu_memory=gpu_memory,
        host_memory=host_memory,
        nvme=nvme,
        hardware=hardware,
        gpus_per_node=gpus_per_node,
        internode=internode,
        price=price,
        max=largest,
        write=write,
        strategy=strategy,
        force=force,
    )
    if as_json:
        print(json.dumps(made.to_dict(), indent=2))
        return
    from ds_llama.cli.plan_table import text
    from ds_llama.planner.strategies import RECOMPUTE

    print(text(made, shutil.get_terminal_size().columns, every=every))
    if write is not None:
        name = strategy or made.recommended or ""
        if name.endswith(RECOMPUTE):
            print("runs of ds_llama recompute by this file; elsewhere the model must call for it")
        print(f"wrote {write}: {name}")


def _calibrate(out: Path | None, as_json: bool) -> None:
    from ds_llama.cli.calibrate import calibrate, text

    target, profile = calibrate(out)
    print(json.dumps(profile, indent=2) if as_json else text(target, profile))
