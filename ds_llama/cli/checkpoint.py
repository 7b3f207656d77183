"""`ds-llama checkpoint list|verify|prune`: what is committed, whether it is whole."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ds_llama.commit import disk, listing, lock, manifest, names, protocol, retention
from ds_llama.commit.listing import Checkpoint
from ds_llama.commit.verify import Problem
from ds_llama.commit.verify import verify as verify_folder
from ds_llama.errors import CallError, CheckpointError
from ds_llama.units import format_bytes

# Narrower terminals are told names and states only.
_WIDE_COLUMNS = 60

app = typer.Typer(add_completion=False, no_args_is_help=True)

Folder = Annotated[
    Path,
    typer.Argument(help="A run folder, or its checkpoints folder.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("list")
def list_command(folder: Folder, as_json: Json = False) -> None:
    """Which checkpoints there are, oldest first; nothing but names and sizes is read."""
    root = _root(folder)
    found = listing.checkpoints(root)
    latest = listing.latest(root)
    if as_json:
        rows = [checkpoint.to_dict() for checkpoint in found]
        print(json.dumps({"checkpoints": rows, "latest": latest}, indent=2))
        return
    if not found:
        print(f"no checkpoint in {root}")
        return
    _print_table(found, latest)


@app.command("verify")
def verify_command(
    folder: Annotated[
        Path,
        typer.Argument(help="A run, checkpoints or step folder.", show_default=False),
    ],
    as_json: Json = False,
) -> int:
    """Read every file and compare it with its manifest; exit code 1 when one differs."""
    rows = []
    for name, path in _steps(folder).items():
        found = verify_folder(path)
        rows.append(_verified(name, found))
        if not as_json:
            # Each at once: reading a large one takes minutes.
            lines = [f"{name}: {_summary(found)}", *(f"  {problem}" for problem in found)]
            print("\n".join(lines), flush=True)
    if as_json:
        print(json.dumps({"checkpoints": rows}, indent=2))
    return 0 if all(row["whole"] for row in rows) else 1


@app.command("prune")
def prune_command(
    folder: Folder,
    keep_last: Annotated[int, typer.Option(min=1, help="Complete checkpoints to keep.")] = 3,
    keep_every_steps: Annotated[
        int | None, typer.Option(min=1, help="Keep those at multiples of this too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove old checkpoints; the newest whole one always stays, and is read to know that it is.

    Damaged ones are left alone, and do not count. What a killed run left half written goes too.
    """
    root = _root(folder)
    left = _tidy(root)
    unlike = retention.damaged_newest(root)
    removed = retention.prune(root, keep_last, keep_every_steps, damaged=unlike)
    kept = listing.checkpoints(root)
    damaged = [c.name for c in kept if not c.complete or c.name in unlike]
    if as_json:
        report = {"removed": removed, "kept": [c.name for c in kept], "damaged": damaged}
        report["left_by_kills"] = left
        print(json.dumps(report, indent=2))
        return
    for name, problem in unlike.items():
        print(f"{name} is damaged: {problem}")
    for name in left:
        print(f"{name} was left by a run that was killed, and is put right")
    if not kept:
        print(f"no checkpoint in {root}")
        return
    words = [f"{c.name} (damaged)" if c.name in damaged else c.name for c in kept]
    print(f"removed {', '.join(removed) or 'none'}; kept {', '.join(words)}")


def _tidy(root: Path) -> list[str]:
    """Put right what killed runs left; not where a run may be saving, which does so itself."""
    if not (root.parent / lock.NAME).exists():
        return []
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.RunLock(root.parent))
        except CheckpointError:
            return []
        with disk.explained("putting right what a killed run left", root):
            return protocol.recover(root)


def _root(folder: Path) -> Path:
    """The checkpoints folder that a run folder or that folder itself means."""
    if _is_step(folder) and folder.is_dir():
        raise CallError(
            "this is one checkpoint, not a folder of them",
            where=str(folder),
            remedy=f"give {folder.parent}, or ask about this one with ds-llama checkpoint verify",
        )
    if not folder.is_dir():
        raise CallError(
            "this is not a folder" if folder.exists() else "there is no such folder",
            where=str(folder),
            remedy="give a run's output folder, or the checkpoints folder in it",
        )
    inner = folder / listing.CHECKPOINTS
    return inner if inner.is_dir() else folder


def _is_step(folder: Path) -> bool:
    return (folder / manifest.NAME).exists() or names.step_of(folder.name) is not None


def _steps(folder: Path) -> dict[str, Path]:
    if _is_step(folder) and folder.is_dir():
        return {folder.name: folder}
    found = listing.checkpoints(_root(folder))
    if not found:
        raise CallError(
            "there is no checkpoint to verify",
            where=str(_root(folder)),
            remedy="give a run's output folder, its checkpoints folder, or a step folder",
        )
    return {checkpoint.name: checkpoint.path for checkpoint in found}


def _summary(found: list[Problem]) -> str:
    return f"{len(found)} problem{'s' if len(found) > 1 else ''}" if found else "whole"


def _verified(name: str, found: list[Problem]) -> dict[str, Any]:
    problems = [problem.to_dict() for problem in found]
    return {"name": name, "whole": not found, "problems": problems}


def _print_table(found: list[Checkpoint], latest: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    wide = console.width >= _WIDE_COLUMNS
    table = Table(box=None, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for title in ("size", "ranks", "stage") if wide else ():
        table.add_column(title, justify="right")
    table.add_column("state", overflow="fold")
    for checkpoint in found:
        state = "complete" if checkpoint.complete else "damaged"
        if checkpoint.name == latest:
            state += ", latest"
        layout = (checkpoint.world_size, checkpoint.stage)
        numbers = ["?" if number is None else str(number) for number in layout]
        middle = [format_bytes(checkpoint.bytes), *numbers] if wide else []
        table.add_row(checkpoint.name, *middle, state)
    console.print(table)
