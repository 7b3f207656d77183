"""What a prepare has written so far, and how far it has read: kept in a folder, to go on from.

    train.bin.partial … rejects.jsonl digests     grow at their ends only
    journal.json                                  how long they were when what was read came so far

The journal is written when all that it counts is on the disk. Whoever goes on from it cuts the
files back to those lengths, and checks what is left against its hashes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ds_llama.data.appending import AppendedFile
from ds_llama.data.encoding import Encoded, Splits
from ds_llama.data.fingerprint import read_json, write_json
from ds_llama.data.reading import DIGEST_BYTES, START, Batch, Position
from ds_llama.data.shards import ShardWriter, partial_of

JOURNAL = "journal.json"
REJECTS = "rejects.jsonl"
MASK = "-mask"
_DIGESTS = "digests"
_JOURNAL_EVERY_S = 3.0
_SHOWN_PROBLEMS = 5


@dataclass
class Tally:
    """`bad` counts records that are no documents by the kind of their problem."""

    files: int = 0
    bytes: int = 0
    documents: int = 0
    duplicates: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    first_bad: list[str] = field(default_factory=list)

    @property
    def bad_records(self) -> int:
        return sum(self.bad.values())

    @property
    def records(self) -> int:
        return self.documents + self.duplicates + self.bad_records


@dataclass(frozen=True)
class Shape:
    """Which shards there are, and of what ids; `mask`: each has a shard of marks beside it."""

    splits: tuple[str, ...]
    vocab_size: int
    mask: bool

    def writers(self, folder: Path, kept: Mapping[str, Any] | None) -> dict[str, ShardWriter]:
        """One a shard, opened where `kept` says."""
        found = {}
        with ExitStack() as stack:
            for name in self.names:
                mark = name.endswith(MASK)
                size, dtype = (2, np.dtype("u1")) if mark else (self.vocab_size, None)
                state = kept and kept[name]
                found[name] = ShardWriter(folder / name, vocab_size=size, dtype=dtype, kept=state)
                stack.callback(found[name].leave)
            stack.pop_all()
        return found

    @property
    def names(self) -> list[str]:
        return [s + suffix for s in self.splits for suffix in (("", MASK) if self.mask else ("",))]


class Output:
    """Appends batches, and writes the journal now and then.

    A context manager: what leaves it by an exception between two batches is in the journal, so that
    nothing but what was on its way is done again. Take one up with `taken_up`.
    """

    def __init__(
        self,
        folder: Path,
        mark: str,
        shape: Shape,
        bytes_total: int,
        journal: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self._mark, self.bytes_total = folder, mark, bytes_total
        kept = journal and journal["files"]
        self.tally = Tally(**journal["tally"]) if journal else Tally()
        self.position = Position(*journal["position"]) if journal else START
        self.taken_up_at = self.position
        with ExitStack() as stack:
            self.writers = shape.writers(folder, kept)
            for writer in self.writers.values():
                stack.callback(writer.leave)
            self.rejects = AppendedFile(folder / REJECTS, kept and kept[REJECTS])
            stack.callback(self.rejects.leave)
            self._digests = AppendedFile(folder / _DIGESTS, kept and kept[_DIGESTS])
            stack.callback(self._digests.leave)
            self._open = stack.pop_all()
        self._agree, self._saved_s = True, time.monotonic()

    def seen(self) -> set[bytes]:
        """Digests of the documents so far: about 100 bytes of memory each."""
        raw = self._digests.path.read_bytes()
        return {raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES)}

    def append(self, batch: Batch, splits: Splits) -> None:
        self._agree = False  # the files and what is counted of them
        for name, encoded in (("train", splits.train), ("validation", splits.validation)):
            self._add(name, encoded)
        refused = [batch.refused(text, problem) for text, problem in splits.refused]
        for reject in sorted(batch.rejects + refused):
            self.rejects.write(reject.line().encode("utf-8", "surrogatepass"))
            self.tally.bad[reject.kind] = self.tally.bad.get(reject.kind, 0) + 1
            if len(self.tally.first_bad) < _SHOWN_PROBLEMS:
                self.tally.first_bad.append(f"{reject.where}: {reject.problem}")
        self._digests.write(b"".join(batch.digests))
        self.tally.documents += len(batch.texts) - len(refused)
        self.tally.duplicates += batch.duplicates
        self.tally.files, self.tally.bytes = batch.end.file, batch.end.bytes
        self.position, self._agree = batch.end, True
        if time.monotonic() - self._saved_s >= _JOURNAL_EVERY_S:
            self.save()

    def _add(self, name: str, encoded: Encoded) -> None:
        if name in self.writers:
            self.writers[name].add_many(encoded.ids, encoded.sizes)
        if encoded.mask is not None and name + MASK in self.writers:
            self.writers[name + MASK].add_many(encoded.mask, encoded.sizes)

    @property
    def tokens(self) -> int:
        return sum(w.num_tokens for name, w in self.writers.items() if not name.endswith(MASK))

    def save(self) -> None:
        """Write the journal."""
        files = {name: writer.save() for name, writer in self.writers.items()}
        files |= {REJECTS: self.rejects.save(), _DIGESTS: self._digests.save()}
        journal = {"position": self.position, "tally": asdict(self.tally), "files": files}
        about = {"fingerprint": self._mark, "bytes_total": self.bytes_total}
        write_json(self.folder / JOURNAL, {**about, **journal})
        self._saved_s = time.monotonic()

    def close(self) -> None:
        """Make whole shards of what was written, in the folder still."""
        self.save()
        self._agree = False
        for writer in self.writers.values():
            writer.close()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *raised: object) -> None:
        with self._open:
            if raised[0] is not None and self._agree and self.tally.documents:
                self.save()


def taken_up(folder: Path, mark: str, shape: Shape, bytes_total: int) -> Output:
    """Where the journal of the same call left off; else from the beginning."""
    journal = read_json(folder / JOURNAL)
    if journal.get("fingerprint") == mark:
        for name in shape.names:  # it may have been killed while it gave the files their names
            for file in (folder / f"{name}.bin", folder / f"{name}.idx"):
                if file.exists():
                    file.replace(partial_of(file))
        try:
            return Output(folder, mark, shape, bytes_total, journal)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # cut off or changed by someone: nothing of it can be trusted
    (folder / JOURNAL).unlink(missing_ok=True)
    return Output(folder, mark, shape, bytes_total)
