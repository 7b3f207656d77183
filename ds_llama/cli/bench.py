"""`ds-llama bench`: run a benchmark case, each cell in processes of its own."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds_llama.cli.outcome import Terminated

if TYPE_CHECKING:
    from ds_llama.config.run import Run

_STOPPED = frozenset(128 + signum for signum in (signal.SIGINT, signal.SIGTERM))


def command(
    case: Annotated[
        Path | None, typer.Argument(help="The case's JSON, as in benchmarks/cases.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the rows: rows.jsonl, logs.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Launches of each cell, instead of the case's.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Launch the cells whose whole name is like this shell pattern "
            '("zero3*bf16*"), or else has it in it ("fsdp2"); repeatable.',
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Keep a trace of torch's profiler of each launched cell."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    rank_folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> int:
    """Measure every cell of a case, each in processes of its own; DIR/rows.jsonl has a row each.

    The same command goes on after an interruption: launches that are done stay done. Cells that
    are refused, do not fit, run out of memory or time, or fail are rows with their reason, and
    DIR/logs has what they printed. `ds-llama report DIR` makes the report. Exit code 1 if no cell
    could be measured.

    `ds-llama bench comm` measures the links between the ranks instead.
    """
    if rank_folder is not None:
        return _run_rank(rank_folder)
    if case is None or out is None:
        raise _incomplete(case)
    from ds_llama.bench.case import read_case
    from ds_llama.bench.harness import Options, run_case
    from ds_llama.bench.machine import provenance
    from ds_llama.cli.bench_progress import bar_or_lines
    from ds_llama.launcher.environment import has_device

    wanted = read_case(case)
    if (out / "case.json").resolve() == case.resolve():
        raise _in_its_own_folder(out)
    if repeats is not None:
        wanted = wanted.model_copy(update={"repeats": repeats})
    device = "cuda" if has_device() else "cpu"
    about = provenance(sys.argv[1:], device)
    with _saying_how_to_go_on(), bar_or_lines() as say:
        options = Options(device, about, case.parent, profile, only or (), say)
        rows = run_case(wanted, out, _start, options)
    measured = sum(row["status"] == "ok" for row in rows)
    if as_json:
        print(json.dumps({"out": str(out), "rows": rows}))
    else:
        print(f"{measured} of {len(rows)} cells measured; ds-llama report {out}")
    return 0 if measured else 1


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit, Terminated):
        print("stopped; the same command goes on with the launches left", file=sys.stderr)
        raise


def _start(folder: Path, ranks: int, run: Run, log: Path, timeout_s: float) -> int:
    """One launch. What the launcher has to say of it goes to the log, not to the screen."""
    from ds_llama.errors import MachineError, RunError
    from ds_llama.launcher.run import launch

    words = ["bench", "--rank-folder", str(folder)]
    try:
        code = launch(words, run, nproc=ranks, log=log, timeout_s=timeout_s)
    except (RunError, MachineError) as error:
        with log.open("a") as file:
            file.write(f"\n{error}\n")
        return error.exit_code
    if code in _STOPPED:
        raise SystemExit(code)
    return code


def _run_rank(folder: Path) -> int:
    from ds_llama.bench.rank import run_rank

    run_rank(folder)
    return 0


def _incomplete(case: Path | None) -> Exception:
    from ds_llama.errors import CallError

    missing = "no case is named" if case is None else "--out names no folder"
    return CallError(missing, where="command line", remedy="ds-llama bench CASE.json --out DIR")


def _in_its_own_folder(out: Path) -> Exception:
    from ds_llama.errors import CallError

    return CallError(
        "the benchmark's own copy of the case would be written over the case",
        where=f"--out {out}",
        remedy="give a folder of its own as --out",
    )
