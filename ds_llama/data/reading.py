"""The records of a corpus in batches; what is passed over is kept with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ds_llama.data.sources import Options, Record, read

_BATCH_CHARACTERS = 1 << 19
_RECORD_CHARACTERS = 64  # what a record weighs by itself, so that empty ones fill a batch too
_RAW_CHARACTERS = 2000
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Choice:
    """Which documents are left out, beside those that cannot be read."""

    deduplicate: bool = False
    max_document_bytes: int | None = None


class Position(NamedTuple):
    """Number `record` of file number `file` is the next to be read; `bytes` lie before it."""

    file: int = 0
    record: int = 0
    bytes: int = 0


START = Position()


class Reject(NamedTuple):
    """A record that is no document; `record` is its number in its batch."""

    record: int
    where: str
    problem: str
    raw: str

    @property
    def kind(self) -> str:
        """The problem's first words, which records with other values share."""
        return self.problem.partition(":")[0].partition(";")[0]

    def line(self) -> str:
        shown = {"where": self.where, "problem": self.problem, "raw": self.raw[:_RAW_CHARACTERS]}
        return json.dumps(shown, ensure_ascii=False) + "\n"


@dataclass
class Batch:
    """About half a million characters of text; `end` is where the next one begins.

    `numbers` and `places` say which record of the batch, and of which file and line, each text is;
    `digests` are those of the texts where equal ones are looked for.
    """

    texts: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    duplicates: int = 0
    rejects: list[Reject] = field(default_factory=list)
    end: Position = START
    records: int = 0
    characters: int = 0

    def refused(self, text: int, problem: str) -> Reject:
        """Text number `text` as a reject."""
        return Reject(self.numbers[text], self.places[text], problem, self.texts[text])


def digest_of(text: str) -> bytes:
    """128 bits: two of 10^12 documents meet with a probability below 1e-14."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def batches(
    files: list[Path], options: Options, choice: Choice, start: Position, seen: set[bytes]
) -> Iterator[Batch]:
    """From `start` to the end. What a batch holds depends on `start` and the corpus alone.

    Records before `start` in its file are read once more, and passed over. `seen` are the digests
    of the documents before it, and grows.
    """
    batch, before = Batch(), sum(path.stat().st_size for path in files[: start.file])
    for number, path in enumerate(files[start.file :], start.file):
        skipped = start.record if number == start.file else 0
        for count, record in enumerate(islice(read(path, options), skipped, None), skipped + 1):
            _add(batch, record, choice, seen)
            if batch.characters >= _BATCH_CHARACTERS:
                yield _ended(batch, number, count, before + record.position)
                batch = Batch()
        before += path.stat().st_size
        batch.end = Position(number + 1, 0, before)
    if batch.end.file:
        yield batch


def _ended(batch: Batch, file: int, record: int, position: int) -> Batch:
    batch.end = Position(file, record, position)
    return batch


def _add(batch: Batch, record: Record, choice: Choice, seen: set[bytes]) -> None:
    problem = record.problem or _problem(record.text, choice)
    if problem:
        raw = record.raw or record.text
        batch.rejects.append(Reject(batch.records, record.where, problem, raw[:_RAW_CHARACTERS]))
    elif not choice.deduplicate:
        _take(batch, record)
    elif (digest := digest_of(record.text)) in seen:
        batch.duplicates += 1
    else:
        seen.add(digest)
        batch.digests.append(digest)
        _take(batch, record)
    batch.records += 1
    batch.characters += _RECORD_CHARACTERS + len(record.text or record.raw)


def _take(batch: Batch, record: Record) -> None:
    batch.texts.append(record.text)
    batch.numbers.append(batch.records)
    batch.places.append(record.where)


def _problem(text: str, choice: Choice) -> str | None:
    if not text:
        return "empty"
    most = choice.max_document_bytes
    if most is None or 4 * len(text) <= most:
        return None
    size = len(text.encode("utf-8", "surrogatepass"))
    return f"too long: {size} bytes, {most} are allowed" if size > most else None
