"""Everything that can be said about a file without its data: a Report of Problems, no exception."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_llama.config.deepspeed import SCHEMA, Dialect, check
from ds_llama.config.files import read_text, to_object
from ds_llama.config.load import read_run, warnings_of
from ds_llama.config.problems import Problem
from ds_llama.errors import CallError, ConfigError, ConfigErrors

STDIN = "-"
_RUN_KEYS = {"model", "data", "train", "evaluation", "tracking", "deepspeed", "output", "resolved"}


@dataclass
class Report:
    """What was found in one file; `readable` is false when it is no JSON object."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    readable: bool = True
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "problems": [p.to_dict() for p in self.problems]}

    def count(self, severity: str) -> int:
        return sum(problem.severity == severity for problem in self.problems)


@dataclass(frozen=True)
class Linter:
    """What is known beside the files. `world_size` and `device`: None where the rules that need
    them are to be silent. `stdin` reads what the file "-" stands for."""

    dialect: Dialect = "deepspeed"
    world_size: int | None = None
    device: str | None = None
    stdin: Callable[[], str] = lambda: ""

    def report(self, path: Path) -> Report:
        """What is wrong, idle, slow or surprising in one file."""
        try:
            text = self.stdin() if str(path) == STDIN else read_text(path)
        except CallError as error:
            return Report(path, [_unreadable(path, error)], readable=False)
        return self.report_of(text, path)

    def report_of(self, text: str, path: Path) -> Report:
        """`report` for the text of a file; `path` is what messages call it."""
        try:
            return Report(path, self.problems(to_object(text, path), path), text=text)
        except CallError as error:
            return Report(path, [_unreadable(path, error)], readable=False, text=text)

    def problems(self, content: Mapping[str, Any], path: Path) -> list[Problem]:
        """CallError: the run names a file that cannot be read."""
        if is_run(content):
            return self._of_run(content, path)
        known: dict[str, Any] = {"world_size": self.world_size, "device": self.device}
        return check(content, dialect=self.dialect, **known)

    def _of_run(self, content: Mapping[str, Any], path: Path) -> list[Problem]:
        try:
            run = read_run(content, path, world_size=self.world_size, device=self.device)
        except ConfigErrors as error:
            found = error.errors
        except ConfigError as error:
            found = [error]
        else:
            return self._resolved(run, path)
        return [_problem(path, error) for error in found]

    def _resolved(self, run: Any, path: Path) -> list[Problem]:
        """The run's warnings, and what it meets on the world and the device that are known."""
        from ds_llama.config.resolve import resolve

        warnings = warnings_of(run)
        if run.architecture is None or (self.world_size is None and self.device is None):
            return warnings
        try:
            resolve(run, self.world_size or 1, device=self.device or "cuda")
        except ConfigErrors as error:
            return [*(_problem(path, inner) for inner in error.errors), *warnings]
        except ConfigError as error:
            return [_problem(path, error), *warnings]
        return warnings


def is_run(content: Mapping[str, Any]) -> bool:
    """Whether an object is a run of this package; else it is a DeepSpeed JSON."""
    ours = len(_RUN_KEYS & content.keys())
    return ours > len((SCHEMA.keys.keys() & content.keys()) - {"optimizer", "checkpoint"})


def _unreadable(path: Path, error: CallError) -> Problem:
    key = error.where.removeprefix(str(path)).lstrip(":")
    return Problem("unreadable", "error", key, error.what, error.remedy)


def _problem(path: Path, error: ConfigError) -> Problem:
    """An error of a run as a Problem; what is in another file keeps that file's name in the key."""
    where = error.where
    key = where.removeprefix(f"{path}:") if where != str(path) else ""
    return Problem(error.code, "error", key, error.what, error.remedy)
