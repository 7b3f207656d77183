"""How many bad records a corpus may have."""

from __future__ import annotations

from dataclasses import dataclass

from ds_llama.errors import CallError

# Below this a share says nothing: the first record of a corpus may be its only bad one.
_JUDGED_FROM_RECORDS = 1000


@dataclass(frozen=True)
class Limit:
    """`count` records, or the `share` of all: judged from 1000 records on, and at the end."""

    text: str
    count: int | None = None
    share: float | None = None

    def is_passed(self, bad: int, records: int, *, ended: bool) -> bool:
        if self.count is not None:
            return bad > self.count
        judged = ended or records >= _JUDGED_FROM_RECORDS
        return self.share is not None and judged and bad > self.share * records


def parse_limit(text: str | int | None) -> Limit | None:
    """`"100"` or `"1%"`; None is no limit. Raises `CallError` for anything else."""
    if text is None:
        return None
    written = str(text).strip()
    number, percent = written.removesuffix("%").strip(), written.endswith("%")
    try:
        if not percent:
            return _checked(Limit(written, count=int(number)))
        return _checked(Limit(written, share=float(number) / 100))
    except ValueError as error:
        raise CallError(
            f"{written!r} is no limit for bad records",
            where="--max-bad",
            remedy="give a number of records such as 100, or a share of them such as 1%",
        ) from error


def _checked(limit: Limit) -> Limit:
    if not (limit.count or 0) >= 0 or not 0 <= (limit.share or 0) <= 1:
        raise ValueError(limit.text)
    return limit
