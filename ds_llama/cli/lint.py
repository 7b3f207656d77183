"""`ds-llama lint`: what is wrong, idle or slow in run JSONs and DeepSpeed JSONs."""

from __future__ import annotations

import json as jsons
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ds_llama.config.problems import Problem

_RUN_KEYS = {"model", "data", "train", "evaluation", "tracking", "deepspeed", "output", "resolved"}


class Dialect(str, Enum):
    """Who reads the DeepSpeed JSON: a plain script, or the Hugging Face Trainer."""

    deepspeed = "deepspeed"
    huggingface = "huggingface"


@dataclass
class Report:
    """What was found in one file; `readable` is false when it is no JSON object."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    readable: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "problems": [p.to_dict() for p in self.problems]}

    def count(self, severity: str) -> int:
        return sum(problem.severity == severity for problem in self.problems)


def command(
    files: Annotated[list[Path], typer.Argument(help="Run JSONs and DeepSpeed JSONs.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    dialect: Annotated[
        Dialect, typer.Option(help='"huggingface" where the Trainer fills in "auto".')
    ] = Dialect.deepspeed,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for warnings too.")] = False,
) -> int:
    """Check run JSONs and any DeepSpeed JSON: exit 0 clean, 1 errors, 2 not a JSON object."""
    reports = [lint(path, str(Dialect(dialect).value)) for path in files]
    if json:
        print(jsons.dumps({"files": [report.to_dict() for report in reports]}, indent=2))
    else:
        print("\n".join(_text(report) for report in reports))
    if not all(report.readable for report in reports):
        return 2
    return int(any(r.count("error") or (strict and r.count("warning")) for r in reports))


def lint(path: Path, dialect: str = "deepspeed") -> Report:
    """Everything that can be said about one file without its data, world size or device."""
    from ds_llama.config.files import read_object
    from ds_llama.errors import CallError

    try:
        content = read_object(path)
        if is_run(content):
            return Report(path, _run_problems(path))
    except CallError as error:
        key = error.where.removeprefix(str(path)).lstrip(":")
        problem = Problem("unreadable", "error", key, error.what, error.remedy)
        return Report(path, [problem], readable=False)
    return Report(path, _deepspeed_problems(content, dialect))


def is_run(content: dict[str, Any]) -> bool:
    """Whether an object is a run of this package; else it is a DeepSpeed JSON."""
    from ds_llama.config.deepspeed import SCHEMA

    ours = len(_RUN_KEYS & content.keys())
    return ours > len((SCHEMA.keys.keys() & content.keys()) - {"optimizer", "checkpoint"})


def _deepspeed_problems(content: dict[str, Any], dialect: str) -> list[Problem]:
    from ds_llama.config.deepspeed import check

    return check(content, dialect="huggingface" if dialect == "huggingface" else "deepspeed")


def _run_problems(path: Path) -> list[Problem]:
    from ds_llama.config.load import load_run, warnings_of
    from ds_llama.errors import ConfigError, ConfigErrors

    try:
        return warnings_of(load_run(path))
    except ConfigErrors as error:
        found = error.errors
    except ConfigError as error:
        found = [error]
    return [_problem(path, error.what, error.where, error.remedy, error.code) for error in found]


def _problem(path: Path, what: str, where: str, remedy: str, code: str) -> Problem:
    """An error of a run as a Problem; what is in another file keeps that file's name in the key."""
    key = where.removeprefix(f"{path}:") if where != str(path) else ""
    return Problem(code, "error", key, what, remedy)


def _text(report: Report) -> str:
    errors, warnings = report.count("error"), report.count("warning")
    summary = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    lines = [f"{report.path}: {summary if report.problems else 'clean'}"]
    for problem in report.problems:
        place = f"{report.path}:{problem.key}" if problem.key else str(report.path)
        lines += [
            f"  {problem.severity} [{problem.code}] {place}",
            f"    {problem.message}",
            f"    remedy: {problem.remedy}",
        ]
    return "\n".join(lines)
