"""Token shards in the Megatron indexed dataset layout: PREFIX.bin holds ids, PREFIX.idx says where.

    .idx   9 bytes   magic "MMIDIDX\\0\\0"
           uint64    version, 1
           uint8     code of the id type in .bin (8 is uint16, 4 is int32, ...)
           uint64    S, number of sequences
           uint64    D, number of entries in the document index (documents + 1)
           int32[S]  tokens of each sequence
           int64[S]  byte offset of each sequence in .bin
           int64[D]  first sequence of each document, then S

Everything is little-endian. Layout as read by megatron-core's `core/datasets/indexed_dataset.py`,
Megatron-DeepSpeed and gpt-neox; this module writes one sequence a document and reads any.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ds_llama.data.appending import AppendedFile
from ds_llama.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_COUNTS = struct.Struct("<QBQQ")
HEADER_BYTES = len(MAGIC) + _COUNTS.size
_INTEGER_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_REBUILD = "prepare the corpus again with `ds-llama data prepare`, or copy both files again"

Ids = npt.NDArray[np.integer[Any]]


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65500 tokens, int32 otherwise: Megatron's own limit, so that bytes agree."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def paths_of(prefix: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The .bin and the .idx file of a prefix; the name of either file is taken as well."""
    text = os.fspath(prefix)
    text = text[:-4] if text.endswith((".bin", ".idx")) else text
    return Path(text + ".bin"), Path(text + ".idx")


def partial_of(path: Path) -> Path:
    """The name of a file that is not whole yet."""
    return path.with_name(path.name + ".partial")


class ShardWriter:
    """Writes one shard; the final names appear at `close`, the index last.

    A context manager: leaving it by an exception removes what was written. `vocab_size` chooses the
    id type (unless `dtype` does) and is enforced, because an id beyond it would wrap around without
    a word. `kept` is what `save` gave to a writer that came to no end: this one goes on from there,
    or raises `ValueError` or `OSError` when the files are not those any more.
    """

    def __init__(
        self,
        prefix: str | os.PathLike[str],
        *,
        vocab_size: int,
        dtype: np.dtype[Any] | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self.bin_path, self.idx_path = paths_of(prefix)
        self.vocab_size, self.dtype = vocab_size, dtype or id_dtype(vocab_size)
        self.num_tokens = 0
        self.sha256: dict[str, str] = {}
        self.bin_path.parent.mkdir(parents=True, exist_ok=True)
        self._bin = AppendedFile(partial_of(self.bin_path), kept and kept["bin"])
        try:
            # Sizes come first in an index, after the counts: they are written as they come.
            partial_idx = partial_of(self.idx_path)
            self._idx = AppendedFile(partial_idx, kept and kept["idx"], head=HEADER_BYTES)
        except BaseException:
            self._bin.leave()
            raise
        self._sizes = array("i")
        if kept:
            self._sizes.frombytes(np.fromfile(partial_idx, "<i4", offset=HEADER_BYTES).tobytes())
            self.num_tokens = self._bin.bytes // self.dtype.itemsize

    @property
    def num_documents(self) -> int:
        return len(self._sizes)

    def add(self, ids: npt.ArrayLike) -> None:
        """Append one document."""
        values = np.asarray(ids, dtype=np.int64)
        self.add_many(values, np.array([len(values)], dtype=np.int32))

    def add_many(self, ids: Ids, sizes: Ids) -> None:
        """Append `len(sizes)` documents whose tokens are laid end to end in `ids`."""
        if len(ids) != int(sizes.sum()):
            raise AssertionError(f"{len(ids)} tokens for sizes that sum to {int(sizes.sum())}")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise DataError(
                f"token id {bad} does not fit a vocabulary of {self.vocab_size}",
                where=str(self.bin_path),
                remedy="give the vocabulary size of the tokenizer that made the ids",
            )
        self._bin.write(ids.astype(self.dtype, copy=False).tobytes())
        self._idx.write(sizes.astype("<i4", copy=False).tobytes())
        self._sizes.frombytes(sizes.astype(np.int32, copy=False).tobytes())
        self.num_tokens += len(ids)

    def save(self) -> dict[str, Any]:
        """Have all that was added on the disk; returns what to go on from, as `kept`."""
        return {"bin": self._bin.save(), "idx": self._idx.save()}

    def close(self) -> None:
        """Flush to disk and give the files their names; the index comes last."""
        sizes, header, tail = self._index()
        self._bin.close()
        self._idx.write(tail)
        self._idx.close(header)
        # An old index beside a new .bin would describe bytes that are not there.
        self.idx_path.unlink(missing_ok=True)
        os.replace(self._bin.path, self.bin_path)
        os.replace(self._idx.path, self.idx_path)
        index = hashlib.sha256(header)
        index.update(sizes)
        index.update(tail)
        self.sha256 = {
            self.bin_path.name: self._bin.hash.hexdigest(),
            self.idx_path.name: index.hexdigest(),
        }

    def leave(self) -> None:
        """Close the files as they are, for another writer to go on with."""
        self._bin.leave()
        self._idx.leave()

    def abort(self) -> None:
        """Remove what was written; the final names are untouched."""
        self.leave()
        self._bin.path.unlink(missing_ok=True)
        self._idx.path.unlink(missing_ok=True)

    def _index(self) -> tuple[bytes, bytes, bytes]:
        """Its three parts: sizes, the header before them, and what comes behind."""
        sizes = np.frombuffer(self._sizes, dtype=np.int32).astype("<i4")
        ends = np.cumsum(sizes, dtype=np.int64) * self.dtype.itemsize
        offsets = np.concatenate([np.zeros(1, np.int64), ends])[: len(sizes)].astype("<i8")
        documents = np.arange(len(sizes) + 1, dtype="<i8")
        code = next(c for c, name in _INTEGER_TYPES.items() if np.dtype(name) == self.dtype)
        header = MAGIC + _COUNTS.pack(VERSION, code, len(sizes), len(documents))
        return sizes.tobytes(), header, offsets.tobytes() + documents.tobytes()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class Shard:
    """A memory-mapped shard. `shard[i]` is sequence i, `read` cuts across the concatenation.

    Arrays have the id type of the file and are read-only views, so nothing is copied. Raises
    `DataError` for a file that is missing, foreign, or of another size than its header says.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.bin_path, self.idx_path = paths_of(prefix)
        self.prefix = str(self.idx_path)[: -len(".idx")]
        for path in (self.idx_path, self.bin_path):
            if not path.is_file():
                raise _missing(path)
        code, sequences, documents = _read_header(self.idx_path)
        self.dtype = np.dtype(_INTEGER_TYPES[code])
        index = np.memmap(self.idx_path, mode="r", dtype=np.uint8)
        at = HEADER_BYTES
        self.sizes = np.frombuffer(index, "<i4", sequences, at)
        self.offsets = np.frombuffer(index, "<i8", sequences, at + 4 * sequences)
        self.document_starts = np.frombuffer(index, "<i8", documents, at + 12 * sequences)
        self._tokens = self._map_tokens()

    def _map_tokens(self) -> Ids:
        found, item = self.bin_path.stat().st_size, self.dtype.itemsize
        expected = int(self.offsets[-1]) + int(self.sizes[-1]) * item if len(self.sizes) else 0
        if found != expected:
            raise DataError(
                f"the shard's data has {found} bytes where its index needs {expected}",
                where=str(self.bin_path),
                remedy=_REBUILD,
            )
        if not found:
            return np.empty(0, self.dtype)
        return np.memmap(self.bin_path, mode="r", dtype=self.dtype)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Ids:
        start = int(self.offsets[index]) // self.dtype.itemsize
        return self._tokens[start : start + int(self.sizes[index])]

    def __reduce__(self) -> tuple[object, ...]:
        return (Shard, (self.prefix,))

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def num_documents(self) -> int:
        return len(self.document_starts) - 1

    def document_start(self, document: int) -> int:
        """Tokens before a document's first, for 0 to `num_documents`; the last is the end."""
        sequence = int(self.document_starts[document])
        whole = sequence == len(self.sizes)
        return self.num_tokens if whole else int(self.offsets[sequence]) // self.dtype.itemsize

    def document_borders(self) -> npt.NDArray[np.int64]:
        """Every `document_start` at once, int64: 8 bytes a document."""
        starts = np.append(self.offsets // self.dtype.itemsize, self.num_tokens)
        return np.asarray(starts[self.document_starts], np.int64)

    def read(self, start_token: int, count: int) -> Ids:
        """`count` tokens from `start_token` on, across sequence borders."""
        if start_token < 0 or start_token + count > self.num_tokens:
            raise IndexError(f"{start_token}+{count} is beyond {self.num_tokens} tokens")
        return self._tokens[start_token : start_token + count]

    def largest_id(self, chunk_tokens: int = 1 << 24) -> int:
        """The largest id, -1 for an empty shard. Reads the whole shard, a chunk at a time."""
        starts = range(0, self.num_tokens, chunk_tokens)
        return max((int(self._tokens[s : s + chunk_tokens].max()) for s in starts), default=-1)


def check_vocabulary(shard: Shard, vocab_size: int) -> None:
    """Raise `DataError` when the shard has an id that a model of `vocab_size` cannot embed."""
    largest = shard.largest_id()
    if largest >= vocab_size:
        raise vocabulary_error(largest, vocab_size, where=str(shard.bin_path))


def vocabulary_error(largest: int, vocab_size: int, *, where: str) -> DataError:
    return DataError(
        f"the data holds token id {largest}, the model's vocabulary has {vocab_size} entries",
        where=where,
        remedy=f"set model.vocab_size to at least {largest + 1} (the tokenizer's size), or prepare "
        "the corpus with the model's own tokenizer",
    )


def _read_header(path: Path) -> tuple[int, int, int]:
    found = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if not raw.startswith(MAGIC[: len(raw)]) or not raw:
        raise _damaged(path, f"is not a token index: it starts with {raw[:9]!r}, not {MAGIC!r}")
    if len(raw) < HEADER_BYTES:
        raise _damaged(path, f"is cut off: {found} bytes, the header alone has {HEADER_BYTES}")
    version, code, sequences, documents = _COUNTS.unpack(raw[len(MAGIC) :])
    if version != VERSION:
        raise _damaged(path, f"has layout version {version}; only version {VERSION} is known")
    if code not in _INTEGER_TYPES:
        known = ", ".join(f"{c} {np.dtype(n).name}" for c, n in _INTEGER_TYPES.items())
        raise _damaged(path, f"has id type {code}; token ids are one of {known}")
    expected = HEADER_BYTES + 12 * sequences + 8 * documents
    if found != expected:
        kind = "is cut off" if found < expected else "is too long"
        raise _damaged(
            path, f"{kind}: {found} bytes, its header ({sequences} sequences) needs {expected}"
        )
    return code, sequences, documents


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"the shard's index {what}", where=str(path), remedy=_REBUILD)


def _missing(path: Path) -> DataError:
    folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
    found = sorted(str(p.with_suffix("")) for p in folder.glob("*.idx")) if folder.is_dir() else []
    remedy = "make it with `ds-llama data prepare`; a shard is named by its path without .bin/.idx"
    if found and path.suffix == ".idx":
        remedy = f"name one of the shards that are there: {', '.join(found[:5])}"
    return DataError(f"there is no token shard file {path.name}", where=str(path), remedy=remedy)
