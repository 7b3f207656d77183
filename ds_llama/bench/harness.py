"""Run a case: every cell in a launch of its own, all cells once before any a second time.

    OUT/case.json      the case
    OUT/rows.jsonl     a row a cell, replaced after each launch: what is finished stays finished
    OUT/logs/          what each launch printed
    OUT/data/          the tokens

How a launch is made is the caller's: `Start` gets the arguments of a rank, the number of ranks,
the run, the log and the time that there is, and returns the exit code (124: out of time).
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ds_llama.bench import rows
from ds_llama.bench.case import OURS, Case, Cell
from ds_llama.bench.machine import machine
from ds_llama.bench.runs import Prepared, prepare, run_json, swap_folder, write_data
from ds_llama.config.run import Run
from ds_llama.errors import CallError, RunError

TIMED_OUT = 124
_KILLED = 137
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|MemoryError|can't allocate memory|CUDA out of memory|Cannot allocate memory"
)
_ERROR = re.compile(r"(\[rank\d+\]: )?(error: |[\w.]*(Error|Exception): )")


class Start(Protocol):
    """Who starts the ranks of a cell."""

    def __call__(self, folder: Path, ranks: int, run: Run, log: Path, timeout_s: float) -> int: ...


@dataclass(frozen=True)
class Progress:
    """What has just ended: `done` launches of `total`, `left_s` seconds to go by what they took."""

    done: int
    total: int
    left_s: float
    row: rows.Row


@dataclass(frozen=True)
class Options:
    """How a case is run here.

    about: each row's provenance. base: what `program` files are relative to. profile: keep traces
    in OUT/profiles. only: shell patterns of which one is to be somewhere in the name of what is
    launched; the other cells' rows stay as they are.
    """

    device: str
    about: dict[str, Any]
    base: Path = Path()
    profile: bool = False
    only: Sequence[str] = ()
    say: Callable[[Progress], None] = lambda progress: None


def run_case(case: Case, out: Path, start: Start, options: Options) -> list[rows.Row]:
    """All rows of the case, those that were in OUT already among them.

    An interrupted case is gone on with by the same call; rows with status "error" are tried again.
    Raises RunError when OUT holds another case's rows, CallError for a pattern in no name.
    """
    for pattern in options.only:
        if not any(_wanted(cell, [pattern]) for cell in case.expanded):
            raise CallError(
                f"no cell's name has {pattern!r} in it",
                where="--only",
                remedy=f"names are like {case.expanded[0].name!r}",
            )
    _claim(case, out)
    return _Running(case, out, start, options).all()


class _Running:
    """One case in one folder."""

    def __init__(self, case: Case, out: Path, start: Start, options: Options) -> None:
        self.case, self.out, self.start, self.options = case, out, start, options
        self.cells = case.expanded
        kept = rows.read(out).items()
        self.done = {key: row for key, row in kept if row["status"] in (rows.OK, "oom", "timeout")}

    def all(self) -> list[rows.Row]:
        write_data(self.case, self.cells, self.out)
        prepared = self._prepare()
        wanted = [cell for cell in self.cells if _wanted(cell, self.options.only)]
        launches, spent = list(_launches(self.case, wanted, self.done)), list[float]()
        self._keep()
        for number, cell in enumerate(launches, start=1):
            if self.done.get(cell.key, {}).get("status", rows.OK) != rows.OK:
                continue  # it failed in an earlier round
            began = time.monotonic()
            self.done[cell.key] = self._measure(cell, prepared[cell.key])
            self._keep()
            spent.append(time.monotonic() - began)
            left_s = (len(launches) - number) * sum(spent) / len(spent)
            self.options.say(Progress(number, len(launches), left_s, self.done[cell.key]))
        return [self.done[cell.key] for cell in self.cells if cell.key in self.done]

    def _prepare(self) -> dict[str, Prepared]:
        """The cells that can be run; the others' rows say why they cannot."""
        prepared = dict[str, Prepared]()
        for cell in self.cells:
            there = machine(self.case, cell.world_size, self.options.device)
            found = prepare(self.case, cell, self.out, there)
            if isinstance(found, Prepared):
                prepared[cell.key] = found
            elif cell.key not in self.done:  # what was measured did fit
                refused = rows.failed(cell, "refused", found.reason, found.rule)
                self.done[cell.key] = refused
        return prepared

    def _measure(self, cell: Cell, prepared: Prepared) -> rows.Row:
        """The cell's row after one launch more."""
        repeats = list(self.done.get(cell.key, {}).get("repeats", []))
        folder = self.out / "cells" / cell.key
        log = self.out / "logs" / f"{cell.key}-{len(repeats)}.log"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log.parent.mkdir(exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(self._plan(cell)))
        try:
            limit_s = self.case.timeout_s
            code = self.start(folder, cell.world_size, prepared.run, log, limit_s)
            result = folder / "result.json"
            if code == 0 and result.exists():
                found = json.loads(result.read_text())
                return self._about(rows.complete(cell, prepared, [*repeats, found]))
            return self._about(rows.failed(cell, *_why(code, log, limit_s)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(swap_folder(self.case, self.out), ignore_errors=True)

    def _plan(self, cell: Cell) -> dict[str, Any]:
        """What a rank reads."""
        own = cell.program == OURS
        profiles = self.out / "profiles" / f"{cell.key}.json.gz"
        return {
            "cell": cell.to_dict(),
            "program": OURS if own else str((self.options.base / cell.program).resolve()),
            "run": run_json(self.case, cell, self.out),
            "warmup_steps": self.case.warmup_steps,
            "steps": self.case.steps,
            "profile": str(profiles.resolve()) if self.options.profile else None,
        }

    def _about(self, row: rows.Row) -> rows.Row:
        return {**row, "provenance": self.options.about}

    def _keep(self) -> None:
        rows.write(self.out, [self.done[c.key] for c in self.cells if c.key in self.done])


def _wanted(cell: Cell, only: Sequence[str]) -> bool:
    return not only or any(fnmatch.fnmatchcase(cell.name, f"*{pattern}*") for pattern in only)


def _launches(case: Case, cells: list[Cell], done: dict[str, rows.Row]) -> Iterator[Cell]:
    """Rounds over all cells, so that what drifts drifts for all of them."""
    for number in range(case.repeats):
        for cell in cells:
            row = done.get(cell.key)
            if row is None or (row["status"] == rows.OK and len(row["repeats"]) <= number):
                yield cell


def _why(code: int, log: Path, timeout_s: float) -> tuple[str, str]:
    """Status and reason of a launch that did not end well."""
    text = log.read_text(errors="replace") if log.exists() else ""
    if code == TIMED_OUT:
        return "timeout", f"not ended after {timeout_s:g} s"
    memory = next((line for line in text.splitlines() if _OUT_OF_MEMORY.search(line)), None)
    if memory is not None:
        return "oom", memory.strip()[:300]
    if code == _KILLED:
        return "oom", "a rank was killed by signal 9, as the system does where memory runs out"
    lines = [line.strip() for line in text.splitlines()]
    said = [
        line
        for line in lines
        if re.match(r"(\[rank\d+\]: )?(error: |\w*(Error|Exception): )", line)
    ]
    return "error", f"exit code {code}: {said[0] if said else (lines or ['no word'])[-1]}"[:300]


def _claim(case: Case, out: Path) -> None:
    """Make the folder this case's; RunError where it is another's."""
    out.mkdir(parents=True, exist_ok=True)
    path, content = out / "case.json", case.model_dump(mode="json", exclude={"repeats"})
    if path.exists() and (found := json.loads(path.read_text())) != content:
        changed = sorted(name for name in content if found.get(name) != content[name])
        raise RunError(
            f"the folder holds rows of another case ({', '.join(changed)} differ)",
            where=str(path),
            remedy="give another --out, or remove the folder",
        )
    path.write_text(json.dumps(content, indent=2) + "\n")
