"""Make the report of a folder, and write it there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_llama.bench.report import advise, columns, compose, html, limits, markdown, stale
from ds_llama.bench.report.advise import Advice
from ds_llama.bench.report.compare import Comparison, compare
from ds_llama.bench.report.folder import Folder, read_folder
from ds_llama.bench.report.groups import Group, groups

HTML, MARKDOWN, CSV = "report.html", "report.md", "rows.csv"


@dataclass(frozen=True)
class Report:
    """What was read and made of it; `files` are those written, `removed` an earlier report's."""

    folder: Folder
    found: tuple[tuple[Group, Advice], ...]
    comparison: Comparison | None
    files: tuple[Path, ...]
    removed: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder.path),
            "cells": len(self.folder.cells),
            "measured": sum(len(group.cells) for group, _ in self.found),
            "groups": [_group(group, advice) for group, advice in self.found if group.cells],
            "comparison": self.comparison and self.comparison.to_dict(),
            "collectives": self.folder.comm is not None,
            "files": [str(path) for path in self.files],
            "removed": [str(path) for path in self.removed],
        }


def make(path: Path, other: Path | None = None) -> Report:
    """Read the rows in `path`; write report.html, report.md, rows.csv and the plots there, and
    remove those that an earlier report wrote and this one does not.

    `other`: the folder of an earlier run, which `path` is compared with.
    Raises CallError for folders that hold no benchmark, DataError for damaged rows.
    """
    folder = read_folder(path)
    comparison = None if other is None else compare(folder, read_folder(other))
    each = groups(folder.cells, folder.reference or {})
    found = tuple((group, advise.advise(group)) for group in each)
    made = compose.document(folder, found, comparison)
    beside = {MARKDOWN: markdown.text(made).encode()}
    if folder.cells:
        beside[CSV] = columns.text(each).encode()
    beside |= {f"{picture.name}.png": picture.png for picture in made.pictures}
    removed = stale.left_behind(path, HTML, beside)
    page = f"{html.page(made)}{stale.record(beside)}\n".encode()
    files = {HTML: page, **beside}
    for name, data in files.items():
        (path / name).write_bytes(data)
    for old in removed:
        old.unlink()
    return Report(folder, found, comparison, tuple(path / n for n in files), tuple(removed))


def _group(group: Group, advice: Advice) -> dict[str, Any]:
    keys = ("first_loss", "last_loss", "grad_norm")
    cells = []
    for cell in group.cells:
        found, gap = group.measured(cell), group.parity(cell)
        pace = advise.speed(found)
        cells.append(
            {
                "key": cell.key,
                "name": group.name(cell),
                "tokens_per_s": pace.tokens_per_s,
                "tokens_per_s_range": [pace.low, pace.high],
                "device_peak_bytes": found.memory_bytes,
                "mfu": found.mfu,
                "parity": gap and {key: _finite(getattr(gap, key)) for key in keys},
                "beyond": list(gap.beyond) if gap else [],
                "limit": " ".join(limits.sentences(group, cell)),
            }
        )
    return {
        "title": group.title,
        "reference": group.reference and group.name(group.reference),
        "recommended": advice.take and group.name(advice.take),
        "fastest": _names(group, advice.fastest),
        "cheapest": advice.cheapest and group.name(advice.cheapest),
        "frontier": _names(group, advice.frontier),
        "reason": " ".join(advise.sentences(group, advice)),
        "cells": cells,
    }


def _names(group: Group, cells: Sequence[Any]) -> list[str]:
    return [group.name(cell) for cell in cells]


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is None or math.isfinite(value) else None
