"""`ds-llama train`: one rank's work, or the start of a launcher that runs many."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds_llama.errors import CallError
from ds_llama.units import parse_duration

if TYPE_CHECKING:
    from ds_llama.config.run import Run


class Resume(str, Enum):
    """Words of `--resume`."""

    auto = "auto"
    required = "required"
    never = "never"


def command(
    run: Annotated[Path, typer.Argument(help="The run's JSON file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.path=value, for instance train.steps=20", show_default=False),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Start this many processes on this machine.")
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="Start on the hosts of this DeepSpeed hostfile.")
    ] = None,
    include: Annotated[
        str | None, typer.Option(help="Only these of them: worker-0@worker-1:0,2")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="All of them but these.")] = None,
    launcher: Annotated[
        str, typer.Option(help="What reaches the hosts: ssh, pdsh, torchrun, openmpi or mpich.")
    ] = "ssh",
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Take this many of the hosts; the others are spares."),
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="After a failure go on from the checkpoint, so many times.")
    ] = 0,
    check: Annotated[
        bool, typer.Option(help="Ask the hosts first, as `ds-llama launch check` does.")
    ] = True,
    wait_for_hosts: Annotated[
        str | None,
        typer.Option(help="Where too few hosts can be used and none is spare, ask on: 10m"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, one a line; start nothing.")
    ] = False,
    resume: Annotated[
        Resume, typer.Option(help="Go on from the newest complete checkpoint.")
    ] = Resume.auto,
    accounting: Annotated[
        bool, typer.Option("--accounting", help="Account the bytes of the first steps and save.")
    ] = False,
) -> int:
    """Train a LLaMA under DeepSpeed ZeRO, or go on with a run that stopped."""
    from ds_llama.config import load_run

    overrides = [*(overrides or []), *(["train.accounting=true"] if accounting else [])]
    parsed = load_run(run, *overrides)  # every mistake shows here, before anything starts
    elsewhere = nproc is not None or hostfile is not None
    if elsewhere or dry_run or include is not None or exclude is not None:
        from ds_llama.launcher.run import launch

        if nproc is not None and not dry_run and _is_finished(parsed, nproc, resume.value):
            return 0
        words = ["train", str(run), *overrides, "--resume"]
        again = Resume.auto if resume is Resume.never else resume
        return launch(
            [*words, resume.value],
            parsed,
            nproc=nproc,
            hostfile=hostfile,
            include=include,
            exclude=exclude,
            dry_run=dry_run,
            launcher=launcher,
            nodes=nodes,
            restarts=restarts,
            again=[*words, again.value],
            check=check,
            wait_s=_seconds(wait_for_hosts, check=check),
        )
    from ds_llama.trainer.rank import run_rank

    state = run_rank(parsed, resume.value)
    return 128 + state.stopped_by if state.stopped_by else 0


def _seconds(wait_for_hosts: str | None, *, check: bool) -> float:
    if wait_for_hosts is None:
        return 0.0
    if not check:
        raise CallError(
            "hosts that are not asked are not waited for",
            where="--wait-for-hosts",
            remedy="leave --no-check away",
        )
    return parse_duration(wait_for_hosts, where="--wait-for-hosts")


def _is_finished(run: Run, nproc: int, resume: str) -> bool:
    """Whether nothing is left to do; what the ranks would stop on is raised before they start."""
    from ds_llama.commit import listing
    from ds_llama.commit.verify import verify
    from ds_llama.config.resolve import resolve
    from ds_llama.data import open_corpora
    from ds_llama.data.sampler import check_enough, samples_asked
    from ds_llama.launcher.environment import has_device

    resolved = resolve(run, nproc, device="cuda" if has_device() else "cpu").run
    _, order = open_corpora(resolved.data, resolved.data.train, resolved.train.seed)
    check_enough(order, samples_asked(resolved.train, order))
    if resolved.data.validation is not None:
        open_corpora(resolved.data, resolved.data.validation, resolved.train.seed)
    output = Path(run.output)
    newest = listing.to_resume(output / "checkpoints", resume)
    exports = {"export": run.checkpoint.export, "export-ema": run.ema and run.ema.export}
    if newest is None or not all(
        _is_export_of(newest.path, output / name) for name, asked in exports.items() if asked
    ):
        return False
    from ds_llama.trainer.state import TrainState  # seconds: it imports DeepSpeed

    state = TrainState(
        resolved.train.steps or sys.maxsize, early_stopping=run.evaluation.early_stopping
    )
    try:
        state.restore(json.loads((newest.path / "state.json").read_bytes()))
    except (OSError, ValueError, KeyError):
        return False  # the ranks say what is wrong with it
    if not state.finished or verify(newest.path):
        return False  # the ranks go on, or say what is wrong and from where they do
    why = f": {state.ended_early}" if state.ended_early else ""
    print(f"{output} is finished: {newest.name} is its last step{why}")
    return True


def _is_export_of(checkpoint: Path, folder: Path) -> bool:
    """Whether there is an export, and not one of the run as it was before it got more steps."""
    try:
        exported, saved = ((folder / "config.json").stat(), (checkpoint / "state.json").stat())
    except FileNotFoundError:
        return False
    return exported.st_mtime_ns >= saved.st_mtime_ns
