"""Run a case: every cell in a launch of its own, all cells once before any a second time.

    OUT/case.json      the case
    OUT/rows.jsonl     a row a cell, replaced after each launch: what is finished stays finished
    OUT/logs/          what each launch printed
    OUT/data/          the tokens
    OUT/.lock          one benchmark in a folder at a time

How a launch is made is the caller's: `Start` gets the arguments of a rank, the number of ranks,
the run, the log and the time that there is, and returns the exit code (124: out of time).
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ds_llama.bench import rows
from ds_llama.bench.case import OURS, Case, Cell, select
from ds_llama.bench.machine import machine
from ds_llama.bench.program import split
from ds_llama.bench.runs import Prepared, prepare, run_json, swap_folder, write_data
from ds_llama.commit import disk
from ds_llama.commit.lock import RunLock
from ds_llama.config.files import read_object
from ds_llama.config.run import Run
from ds_llama.errors import CallError, CheckpointError, RunError

TIMED_OUT = 124
_KILLED = 137
_LASTING = ("oom", "timeout")  # failures that come again; of others a later call tries again
# What may change in a case without making its rows another's.
_FREE = {"description", "repeats", "timeout_s", "device_memory", "host_memory"}
# A key that is younger than a folder had this value there.
_USUAL = {"measure": Case.model_fields["measure"].get_default(call_default_factory=True)}
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|MemoryError|can't allocate memory|CUDA out of memory|Cannot allocate memory"
)
_ERROR = re.compile(r"(\[rank\d+\]: )?(error: |[\w.]*(Error|Exception): )")
_REASON_CHARACTERS = 300


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
    in OUT/profiles. only: patterns that name what is launched (`case.select`); the other cells'
    rows stay as they are.
    """

    device: str
    about: dict[str, Any]
    base: Path = Path()
    profile: bool = False
    only: Sequence[str] = ()
    say: Callable[[Progress], None] = lambda progress: None


def run_case(case: Case, out: Path, start: Start, options: Options) -> list[rows.Row]:
    """All rows of the case, those that were in OUT already among them.

    An interrupted case is gone on with by the same call; rows with status "error" are tried again,
    those with "timeout" where there is more time now. Raises CallError for what the call names and
    is not there, ConfigError for a mistake in the case, RunError where OUT is another case's or
    in use.
    """
    cells = case.expanded
    select(cells, options.only)  # a pattern that names nothing is said before anything is made
    _require(case, cells, options.base)
    with _claimed(case, out):
        return _Running(case, out, start, options).all()


class _Running:
    """One case in one folder."""

    def __init__(self, case: Case, out: Path, start: Start, options: Options) -> None:
        self.case, self.out, self.start, self.options = case, out, start, options
        self.cells, self.rows = case.expanded, rows.read(out)

    def all(self) -> list[rows.Row]:
        prepared = self._prepare()
        wanted = [c for c in select(self.cells, self.options.only) if c.key in prepared]
        left = list(self._launches(wanted))
        self._keep()
        if left:
            write_data(self.case, self.cells, self.out)
        done, spent = 0, dict[str, float]()
        while left:
            cell, began = left.pop(0), time.monotonic()
            row = self.rows[cell.key] = self._measure(cell, prepared[cell.key])
            self._keep()
            if row["status"] != rows.OK:
                left = [each for each in left if each != cell]
            done, spent[cell.key] = done + 1, time.monotonic() - began
            usual = sum(spent.values()) / len(spent)
            left_s = sum(spent.get(each.key, usual) for each in left)
            self.options.say(Progress(done, done + len(left), left_s, row))
        return self._found()

    def _prepare(self) -> dict[str, Prepared]:
        """The cells that can be run; the others' rows say why they cannot."""
        prepared = dict[str, Prepared]()
        for cell in self.cells:
            there = machine(self.case, cell.world_size, self.options.device)
            has_run = bool(self._repeats(cell))
            found = prepare(self.case, cell, self.out, there, has_run=has_run)
            if isinstance(found, Prepared):
                prepared[cell.key] = found
            elif not has_run:
                refused = rows.failed(cell, "refused", found.reason, found.rule)
                self.rows[cell.key] = self._about(refused)
        return prepared

    def _launches(self, cells: Sequence[Cell]) -> Iterator[Cell]:
        """Rounds over all cells, so that what drifts drifts for all of them."""
        for number in range(self.case.repeats):
            for cell in cells:
                if len(self._repeats(cell)) <= number and not self._has_failed(cell):
                    yield cell

    def _repeats(self, cell: Cell) -> list[dict[str, Any]]:
        return list(self.rows.get(cell.key, {}).get("repeats", []))

    def _has_failed(self, cell: Cell) -> bool:
        """Whether it failed in an earlier call, and would again."""
        row = self.rows.get(cell.key)
        if row is None or row["status"] not in _LASTING:
            return False
        return row["status"] != "timeout" or self.case.timeout_s <= row.get("timeout_s", 0.0)

    def _measure(self, cell: Cell, prepared: Prepared) -> rows.Row:
        """The cell's row after one launch more."""
        repeats, limit_s = self._repeats(cell), self.case.timeout_s
        folder = self.out / "cells" / cell.key
        log = self.out / "logs" / f"{cell.key}-{len(repeats)}.log"
        swap = swap_folder(self.case, cell, self.out)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            log.parent.mkdir(exist_ok=True)
            if cell.offload.startswith("nvme"):
                (swap / "swap").mkdir(parents=True, exist_ok=True)
            disk.write(folder / "plan.json", json.dumps(self._plan(cell)).encode())
            code = self.start(folder, cell.world_size, prepared.run, log, limit_s)
            result, refused = folder / "result.json", folder / "refused.json"
            if code == 0 and result.exists():
                repeats.append(json.loads(result.read_text()))
                return self._about(rows.complete(cell, prepared, repeats))
            if refused.exists():
                return self._about(rows.failed(cell, "refused", **json.loads(refused.read_text())))
            status, reason = _why(code, log, limit_s)
            more = {"repeats": repeats, "timeout_s": limit_s, "log": str(log.relative_to(self.out))}
            return self._about(rows.failed(cell, status, reason, **more))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(swap, ignore_errors=True)

    def _plan(self, cell: Cell) -> dict[str, Any]:
        """What a rank reads."""
        own = cell.program == OURS
        profiles = self.out / "profiles" / f"{cell.key}.json.gz"
        return {
            "cell": cell.to_dict(),
            "program": OURS if own else str((self.options.base / cell.program).resolve()),
            "run": run_json(self.case, cell, self.out),
            "warmup_steps": self.case.warmup,
            "steps": self.case.steps,
            "measure": self.case.measure,
            "profile": str(profiles.resolve()) if self.options.profile else None,
        }

    def _about(self, row: rows.Row) -> rows.Row:
        return {**row, "provenance": self.options.about}

    def _found(self) -> list[rows.Row]:
        return [self.rows[cell.key] for cell in self.cells if cell.key in self.rows]

    def _keep(self) -> None:
        rows.write(self.out, self._found())


def _why(code: int, log: Path, timeout_s: float) -> tuple[str, str]:
    """Status and reason of a launch that did not end well."""
    if code == TIMED_OUT:
        return "timeout", f"not ended after {timeout_s:g} s"
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip()[:_REASON_CHARACTERS] for line in text.splitlines() if line.strip()]
    memory = next((line for line in lines if _OUT_OF_MEMORY.search(line)), None)
    if memory is not None:
        return "oom", memory
    if code == _KILLED:
        return "oom", "a rank was killed by signal 9, as the system does where memory runs out"
    said = next((line for line in lines if _ERROR.match(line)), (lines or ["no word"])[-1])
    return "error", f"exit code {code}: {said}"


def _require(case: Case, cells: Sequence[Cell], base: Path) -> None:
    """Raise CallError for a file or folder that the case names and that is not there."""
    programs = {cell.program for cell in cells} - {OURS}
    for path in sorted((base / split(program)[0]).resolve() for program in programs):
        if not path.is_file():
            raise CallError(
                "the case names a program that is not there",
                where=str(path),
                remedy="paths of programs are relative to the case's file",
            )
    if case.nvme_path is not None and not Path(case.nvme_path).is_dir():
        raise CallError(
            f"nvme_path {case.nvme_path} is not a folder",
            where="case:nvme_path",
            remedy="make it, or leave it out for the benchmark's own folder",
        )


@contextmanager
def _claimed(case: Case, out: Path) -> Iterator[None]:
    """Hold the folder for this case; RunError where it is another's, or in use."""
    if out.exists() and not out.is_dir():
        raise CallError("is a file, not a folder", where=str(out), remedy="give another --out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = RunLock(out).acquire()
    except CheckpointError as error:
        raise RunError(
            error.what.replace("run folder", "folder"),
            where=error.where,
            remedy="wait for that benchmark or stop it, or give this one another --out",
        ) from None
    try:
        path, content = out / "case.json", case.model_dump(mode="json")
        found = _USUAL | (read_object(path) if path.exists() else content)
        both = {*content, *found} - _FREE
        changed = sorted(name for name in both if found.get(name) != content.get(name))
        if changed and rows.read(out):
            raise RunError(
                f"the folder holds rows of another case ({', '.join(changed)} differ)",
                where=str(path),
                remedy="give another --out, or remove the folder",
            )
        disk.replace(path, (json.dumps(content, indent=2) + "\n").encode())
        yield
    finally:
        lock.release()
