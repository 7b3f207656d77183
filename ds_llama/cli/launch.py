"""`ds-llama launch hostfile`: the hosts that a run is to be started on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ds_llama.errors import CallError
from ds_llama.launcher import allocation

app = typer.Typer(add_completion=False, no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.callback()
def group() -> None:
    """The hosts of a run."""


@app.command("hostfile")
def hostfile_command(
    from_slurm: Annotated[
        bool, typer.Option("--from-slurm", help="The nodes of this Slurm allocation.")
    ] = False,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Ranks of a node: its GPUs, or else its tasks.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write there; a requeued job does so again.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the hostfile of the Slurm allocation that this is called in."""
    if not from_slurm:
        raise CallError(
            "it is not said where the hosts come from",
            where="command line",
            remedy="give --from-slurm",
        )
    hosts = allocation.hosts(os.environ, slots)
    if out is not None:
        _write(out, allocation.text(hosts))
    if as_json:
        rows = [{"name": host.name, "slots": host.slots} for host in hosts]
        print(json.dumps({"hosts": rows}, indent=2))
    elif out is None:
        print(allocation.text(hosts), end="")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise CallError(
            what, where="--out", remedy="give a path in a folder that is there"
        ) from None
