"""A benchmark's folder, read: its rows, and what its case says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ds_llama.bench import version
from ds_llama.bench.report import collectives
from ds_llama.bench.report.collectives import Comm
from ds_llama.bench.report.row import Cell, Read, parse
from ds_llama.errors import CallError, DataError

ROWS, CASE = "rows.jsonl", "case.json"
_BENCH = "ds-llama bench CASE.json --out DIR"


@dataclass(frozen=True)
class Folder:
    """`reference`: the axes of the cell that the others are compared with; {} for the first.

    comm: what `ds-llama bench comm` wrote there, if it did; there may be no cells then.
    """

    path: Path
    cells: tuple[Cell, ...]
    description: str = ""
    reference: Mapping[str, Any] | None = None
    comm: Comm | None = None

    @property
    def name(self) -> str:
        return self.path.resolve().name


def read_folder(path: Path) -> Folder:
    """What a benchmark wrote there.

    Raises CallError where it wrote nothing, DataError for a line that is no row, or a later
    version's.
    """
    rows = path / ROWS
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CallError(
            f"the folder of a benchmark is wanted, and this {what}",
            where=str(path),
            remedy=f"give the folder that `{_BENCH}` wrote",
        )
    comm = collectives.read(path)
    if comm is not None and not rows.exists():
        return Folder(path, (), comm=comm)
    if not rows.is_file():
        raise CallError(
            f"is no benchmark's folder: it has no {ROWS}",
            where=str(path),
            remedy=f"give the folder that `{_BENCH}` wrote",
        )
    cells = _read_rows(rows)
    if not cells:
        raise DataError("holds no row yet", where=str(rows), remedy=f"run `{_BENCH}`")
    case = _read_case(path / CASE)
    return Folder(path, cells, case.description, case.reference, comm)


def _read_rows(path: Path) -> tuple[Cell, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise _damaged(path, 1, f"byte {error.start} of the file is no UTF-8") from error
    found = dict[str, Cell]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise _damaged(path, number, f"it holds a {type(content).__name__}")
            version.require_known(content, f"{path}:{number}")
            cell = parse(content)
        except json.JSONDecodeError as error:
            raise _damaged(path, number, f"no JSON: {error.msg} at {error.colno}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise _damaged(path, number, f"{key}: {first['msg']}") from error
        found[cell.key] = cell
    return tuple(found.values())


def _damaged(path: Path, line: int, why: str) -> DataError:
    return DataError(
        f"the line is not a row ({why})",
        where=f"{path}:{line}",
        remedy="remove the line, and the same `ds-llama bench` call measures its cell again; what "
        "another version wrote is read by that version",
    )


class _Case(Read):
    """What the rows do not say: all of it may be missing."""

    description: str = ""
    reference: dict[str, Any] = Field(default_factory=dict)


def _read_case(path: Path) -> _Case:
    if not path.is_file():
        return _Case()
    remedy = "remove the file, or mend it"
    try:
        return _Case.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"is not JSON: {error}", where=str(path), remedy=remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        what = f"is no benchmark's case ({key}: {first['msg']})"
        raise DataError(what, where=str(path), remedy=remedy) from error
