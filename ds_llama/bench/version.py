"""Which form a row has. It goes up when a key changes its meaning; keys may be added without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_llama.errors import DataError

FORMAT = 1
KEY = "format_version"


def require_known(row: Mapping[str, Any], where: str) -> None:
    """Raise DataError for the row of a later version. One that does not say is of the first."""
    version = row.get(KEY, 1)
    if isinstance(version, int) and not isinstance(version, bool) and version <= FORMAT:
        return
    raise DataError(
        f"the row's {KEY} is {version!r}, and this ds_llama reads up to {FORMAT}",
        where=where,
        remedy="read it with the version of ds_llama that wrote it, or measure into another folder",
    )
