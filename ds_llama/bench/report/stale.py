"""Files of an earlier report that this one no longer writes.

report.html ends with a record of what was written beside it: names, and what was in them. A file
that is as it was recorded is a report's own and goes with the rows that it was of; one that
somebody changed, or made, stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

_RECORD = "<!-- written beside this page: {} -->"
_FOUND = re.compile(_RECORD.format("(.*?)"))
_FILE = re.compile(r"([A-Za-z0-9_][\w.-]*\.(?:png|csv|md)):([0-9a-f]{16})")


def record(files: Mapping[str, bytes]) -> str:
    """A comment for the page's end. Equal files make equal comments."""
    return _RECORD.format(" ".join(f"{name}:{_digest(data)}" for name, data in files.items()))


def left_behind(folder: Path, page: str, written: Mapping[str, bytes]) -> list[Path]:
    """What the report whose page is there made, is still as it was, and is not `written` now."""
    try:
        text = (folder / page).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    recorded = _FILE.findall(" ".join(_FOUND.findall(text)[-1:]))
    old = [(folder / name, digest) for name, digest in recorded if name not in written]
    return [path for path, digest in old if _is(path, digest)]


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and not path.is_symlink() and _digest(path.read_bytes()) == digest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
