"""`ds-llama report`: what a benchmark's rows come to, as a page, Markdown, CSV and plots."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds_llama.errors import CallError, RunError

if TYPE_CHECKING:
    from ds_llama.bench.report.compare import Comparison


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that `ds-llama bench` wrote.")
    ],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER", help="The folder of an earlier run to compare with."),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="5%",
            help="Exit code 1 if a cell is slower than in OTHER by more than this and than the "
            "noise, or holds more memory by more than this, or is no longer measured.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write report.html, report.md, rows.csv and PNG plots into DIR, from its rows.jsonl.

    They say which stage to take and why, what limits each cell, and whether all cells train the
    same. With OTHER: the change of each cell from OTHER to DIR, with its confidence.
    """
    limit = None if fail_on is None else _share(fail_on, other)
    from ds_llama.bench.report.write import make

    report = make(folder, other)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        from ds_llama.cli.report_table import show

        show(report)
    if limit is not None and report.comparison is not None:
        _judge(report.comparison, limit, fail_on or "", folder)


def _share(text: str, other: Path | None) -> float:
    """0.05 of "5%"."""
    if other is None:
        raise CallError(
            "--fail-on has nothing to compare with",
            where="command line",
            remedy="name an earlier run's folder: ds-llama report DIR OTHER --fail-on 5%",
        )
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*%\s*", text)
    if found is None:
        raise CallError(
            f"{text!r} is not a percentage", where="--fail-on", remedy="write it like 5% or 2.5%"
        )
    return float(found[1]) / 100


def _judge(comparison: Comparison, limit: float, wanted: str, folder: Path) -> None:
    """Raise RunError where the change is worse than that, or where nothing can be said of it."""
    from ds_llama.bench.report.compare import UNSURE
    from ds_llama.bench.report.words import listed

    failures = comparison.failures(limit)
    if failures:
        raise RunError(
            f"worse than {comparison.other} beyond --fail-on {wanted}: {'; '.join(failures)}",
            where=str(folder / "report.html"),
            remedy="see its section on the change; what is not meant to be slower is to be mended",
        )
    unsure = [change.name for change in comparison.changes if change.verdict == UNSURE]
    if len(unsure) == len(comparison.changes):
        what = f"too few launches of {listed(unsure)}" if unsure else "no cell is in both folders"
        raise RunError(
            f"--fail-on {wanted} can say nothing: {what}",
            where=str(folder),
            remedy="measure the same case into both folders, with --repeats 3",
        )
