"""`ds-llama bench comm`: what collectives reach on this machine's links."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ds_llama.errors import CallError

if TYPE_CHECKING:
    from ds_llama.config.resolve import Resolved


def command(
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; by default one for every device, two on a CPU."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Payloads, such as 1MiB,16MiB; by default 4 KiB to 256 MiB, as time is."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="The run whose steps are told, instead of a 1B's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comm.json, a benchmark's or another.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    rank_folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> int:
    """Time every collective by size on the ranks of one launch, beside what its links could do.

    Bandwidths are nccl-tests': bus bandwidth is what crosses each link. Then what a step of each
    ZeRO stage moves, and how long that takes. `ds-llama report DIR` shows it too.
    """
    if rank_folder is not None:
        return _run_rank(rank_folder)
    from ds_llama.bench import comm, comm_stages
    from ds_llama.bench.machine import provenance
    from ds_llama.commit import disk
    from ds_llama.config.resolve import resolve
    from ds_llama.launcher.environment import has_device

    ranks, device = _ranks(nproc), "cuda" if has_device() else "cpu"
    wanted = None if sizes is None else _sizes(sizes, ranks)
    chosen = comm_stages.read_run(None if run is None else str(run))
    resolved = resolve(chosen, ranks, device=device)
    stages = comm_stages.stages(chosen, resolved)
    profile = comm_stages.profile()
    if out is not None:
        _make(out)
    code, result = _measure(wanted, resolved)
    if result is None:
        return code
    found = comm.document(result)
    hardware = comm_stages.hardware(found["device"], profile)
    found["run"] = comm_stages.PRESET if run is None else str(run)
    found["stages"] = [comm_stages.told(stage, found, hardware) for stage in stages]
    found["provenance"] = provenance(sys.argv[1:], device)
    if out is not None:
        disk.replace(out / "comm.json", (json.dumps(found, indent=2) + "\n").encode())
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        from ds_llama.cli.bench_comm_table import show

        show(found)
    return code


def _measure(sizes: list[int] | None, resolved: Resolved) -> tuple[int, dict[str, Any] | None]:
    """One launch: its exit code, and what its first rank wrote."""
    from ds_llama.bench import comm, comm_stages
    from ds_llama.launcher.run import launch

    plan = {
        "series": comm.series(*comm_stages.dtypes(resolved)),
        "sizes": comm.SIZES if sizes is None else sorted({comm.SMALL_BYTES, *sizes}),
        "budget_s": comm.BUDGET_S if sizes is None else None,
    }
    with tempfile.TemporaryDirectory(prefix="ds-llama-comm-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan))
        words = ["bench", "comm", "--rank-folder", name]
        code = launch(words, nproc=resolved.world_size)
        path = folder / "result.json"
        return code, json.loads(path.read_text()) if path.exists() else None


def _ranks(nproc: int | None) -> int:
    from ds_llama.launcher.environment import count_devices, has_device

    ranks = nproc or ((count_devices() or 1) if has_device() else 2)
    if ranks > 1:
        return ranks
    raise CallError(
        "one process has no links: there is nothing to measure",
        where="--nproc",
        remedy="give --nproc 2 or more; with one device, DS_ACCELERATOR=cpu measures the host's",
    )


def _sizes(text: str, ranks: int) -> list[int]:
    from ds_llama.units import parse_bytes

    found = [parse_bytes(word, where="--sizes") for word in text.split(",")]
    least = 4 * ranks
    for size in found:
        if size < least:
            raise CallError(
                f"{size} bytes are less than an element for each of {ranks} ranks",
                where="--sizes",
                remedy=f"give {least} bytes or more, such as 1MiB,16MiB",
            )
    return found


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallError(
            f"the folder cannot be made: {error.strerror}",
            where=str(out),
            remedy="name a folder that is there or can be made",
        ) from None


def _run_rank(folder: Path) -> int:
    """One rank of the launch. Libraries say on stdout what is not the user's."""
    from ds_llama.bench.comm import run_rank
    from ds_llama.cli.ticker import Ticker

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    run_rank(folder, Ticker())
    return 0
