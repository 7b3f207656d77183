"""`ds-llama launch check|hostfile`: the hosts that a run is to be started on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds_llama.errors import CallError
from ds_llama.launcher import allocation

if TYPE_CHECKING:
    from ds_llama.launcher.check.preflight import Report
    from ds_llama.launcher.hostfile import Host

app = typer.Typer(add_completion=False, no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Slots = Annotated[
    int | None, typer.Option(min=1, help="Ranks of a node: its GPUs, or else its tasks.")
]


@app.callback()
def group() -> None:
    """The hosts of a run."""


@app.command("check")
def check_command(
    run: Annotated[
        Path | None, typer.Argument(help="Compare with what this run needs.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value", show_default=False)
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="The hosts of this DeepSpeed hostfile, over ssh.")
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="The nodes of this Slurm allocation, over srun.")
    ] = False,
    slots: Slots = None,
    include: Annotated[
        str | None, typer.Option(help="Only these: worker-0@worker-1:0,2", show_default=False)
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="All but these.", show_default=False)] = None,
    master_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Must be free on the first host; any is else."),
    ] = None,
    allreduce: Annotated[
        bool, typer.Option(help="Then let all ranks add up, where nothing is an error.")
    ] = True,
    as_json: Json = False,
) -> int:
    """Ask every host what it has, compare, and say what would go wrong; exit 1 for an error."""
    from ds_llama.config import load_run
    from ds_llama.launcher.check.preflight import preflight
    from ds_llama.launcher.check.reach import srun
    from ds_llama.launcher.selection import select

    hosts = select(_hosts(hostfile, slots, slurm=slurm), include, exclude)
    parsed = None if run is None else load_run(run, *(overrides or []))
    reach = srun() if slurm else None
    report = preflight(
        hosts, parsed, reach=reach, master_port=master_port or 0, allreduce=allreduce
    )
    _show(report, as_json=as_json)
    return 0 if report.ok else 1


@app.command("hostfile")
def hostfile_command(
    from_slurm: Annotated[
        bool, typer.Option("--from-slurm", help="The nodes of this Slurm allocation.")
    ] = False,
    slots: Slots = None,
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


def _hosts(hostfile: Path | None, slots: int | None, *, slurm: bool) -> list[Host]:
    from ds_llama.launcher import hostfile as hostfiles

    if slurm == (hostfile is not None):
        raise CallError(
            "one of --hostfile and --slurm says which hosts",
            where="command line",
            remedy="give --hostfile FILE, or --slurm inside of an allocation",
        )
    if hostfile is None:
        return allocation.hosts(os.environ, slots)
    if slots is not None:
        raise CallError("--slots is for --slurm", where="--slots", remedy="write it in the file")
    return hostfiles.read(hostfile)


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    from ds_llama.cli.launch_table import show

    show(report, sys.stdout)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise CallError(
            what, where="--out", remedy="give a path in a folder that is there"
        ) from None
