"""Rows of a real case on two ranks of a small machine, and changes of them.

data/rows.jsonl is what `ds-llama bench data/case.json` wrote, without the phases of each launch.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
Row = dict[str, Any]
Write = Callable[..., Path]


def real_rows() -> list[Row]:
    return [json.loads(line) for line in (DATA / "rows.jsonl").read_text().splitlines()]


def measured_rows() -> list[Row]:
    return [row for row in real_rows() if row["status"] == "ok"]


def changed(row: Row, key: str | None = None, **values: Any) -> Row:
    """A copy; "step_s__medians" is a key in a key."""
    new = copy.deepcopy(row)
    if key is not None:
        new["key"] = key
    for name, value in values.items():
        *path, last = name.split("__")
        place = new
        for part in path:
            place = place[part]
        place[last] = value
    return new


def plain(row: Row, key: str | None = None, **values: Any) -> Row:
    """A copy of which no plot but that of its speed is drawn: those take the time of a test."""
    bare = {"parts_s": None, "losses": [], "memory__measured": None, "name": None}
    return changed(row, key, **{**bare, **values})


def timed(row: Row, medians: list[float], key: str | None = None) -> Row:
    """The row, had its launches taken so long a step."""
    middle = statistics.median(medians)
    tokens = row["tokens_per_step"]
    step = {**row["step_s"], "median": middle, "medians": medians}
    return changed(row, key, step_s=step, tokens_per_s=tokens / middle)


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Writes rows, and a case if there is one, as a benchmark's folder."""

    def write(rows: list[Row], name: str = "bench", case: Mapping[str, Any] | None = None) -> Path:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if case is not None:
            (path / "case.json").write_text(json.dumps(case))
        return path

    return write


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the real rows, with their report."""
    from ds_llama.bench.report.write import make

    path = tmp_path_factory.mktemp("report") / "stages"
    path.mkdir()
    for name in ("rows.jsonl", "case.json"):
        (path / name).write_bytes((DATA / name).read_bytes())
    make(path)
    return path
