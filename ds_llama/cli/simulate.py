"""`ds-llama simulate`: the real engine over fake tensors, at any world size."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


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
    steps: Annotated[
        int | None, typer.Option(help="Steps to simulate; the last is shown. Default: 2 or 3.")
    ] = None,
    all_stages: Annotated[
        bool, typer.Option("--all-stages", help="The run at ZeRO stages 0 to 3, side by side.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Write memory over a step's phases as .png, .svg or .pdf.")
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Of one GPU, such as 80GiB: a line in the picture.")
    ] = None,
    snapshot: Annotated[
        Path | None, typer.Option(help="Write every allocation for pytorch.org/memory_viz.")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="Write the same as a Chrome trace for ui.perfetto.dev.")
    ] = None,
) -> int:
    """Construct, register and step through the real DeepSpeed engine without memory or GPUs.

    Prints the bytes that a rank holds in each phase, and what a step moves and computes. Neither
    data nor weights are read, and nothing is written but what is asked for.
    """
    from ds_llama.cli.simulate_table import show
    from ds_llama.config import load_run
    from ds_llama.simulator import Request, simulate_many
    from ds_llama.simulator.outputs import Outputs
    from ds_llama.simulator.stages import every_stage
    from ds_llama.units import parse_bytes

    line = None if gpu_memory is None else parse_bytes(gpu_memory, where="--gpu-memory")
    outputs = Outputs(picture, snapshot, timeline, line)
    outputs.check()
    own, on_cpu = load_run(run, *(overrides or [])), device is Device.cpu
    runs = {"run": own}
    if all_stages:
        runs = every_stage(own, world_size, device="cpu" if on_cpu else "cuda")
    requests = [
        Request(
            each,
            world_size,
            device="cpu" if on_cpu else "sim",
            rank=rank,
            steps=steps,
            film=outputs.film(own=each is own),
        )
        for each in runs.values()
    ]
    found = {
        label if all_stages else f"stage {each.stage}": each
        for label, each in zip(runs, simulate_many(requests), strict=True)
    }
    mine = next(label for label, each in zip(found, runs.values(), strict=True) if each is own)
    outputs.write(found, own=mine)
    if as_json:
        every = [{"label": label, **each.to_dict()} for label, each in found.items()]
        print(json.dumps({"stages": every} if all_stages else every[0], indent=2))
    else:
        for label, each in found.items():
            show(each, label)
    return 0
