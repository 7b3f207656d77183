"""The safetensors file format, read by element range and written one tensor at a time.

    8 bytes: length N of the header, little endian
    N bytes: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …}, JSON
    the tensors' bytes, little endian, row major, without holes, at those offsets

(https://github.com/huggingface/safetensors#format.) The safetensors package maps whole files and
its writer wants all tensors of a file at once, serialised; here a rank that needs a slice of a
tensor reads those bytes, and the writer holds 4 MiB of one.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ds_llama.errors import CheckpointError, ModelError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Of weights: everything else is a quantization, whose scales are other tensors.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PART_BYTES = 1 << 22  # of a tensor that is read or written a part at a time
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit


@dataclass(frozen=True)
class Spec:
    """What a tensor is, before it exists."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize


class Reader:
    """An open safetensors file: `specs` by name, and `read` of any range of a tensor's elements.

    Raises CheckpointError for a file that is missing, cut off or not safetensors; names and
    offsets are checked before anything is read. Use as a context manager.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise self._bad(f"cannot be opened: {error.strerror}") from error
        try:
            self._starts: dict[str, int] = {}
            self.specs: dict[str, Spec] = {}
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def offset(self, name: str) -> int:
        """Where in the file a tensor's first byte is."""
        return self._starts[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements start … stop of a tensor, row major: 1-D, in the file's dtype, on the CPU."""
        spec = self.specs[name]
        stop = spec.numel if stop is None else stop
        found = torch.empty(stop - start, dtype=spec.dtype)
        if not fill(found, self._file, self._starts[name] + start * spec.dtype.itemsize):
            raise self._bad(f"ends inside {name}")
        return found

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _read_header(self) -> None:
        total = os.fstat(self._file.fileno()).st_size
        prefix = self._file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, total - 8):
            raise self._bad("is no safetensors file, or is cut off in its header")
        try:
            header = json.loads(self._file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self._add(name, entry, 8 + length, total)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"has a damaged header ({type(error).__name__}: {error})"
            raise self._bad(what) from error
        self._require_no_holes(8 + length, total)

    def _add(self, name: str, entry: Mapping[str, Any], base: int, total: int) -> None:
        if entry["dtype"] not in DTYPES:
            raise self._bad(f"holds {name} as {entry['dtype']}, which is not supported")
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
        if any(type(number) is not int for number in (*shape, start, stop)):
            raise self._bad(f"has a damaged header: a size of {name} is no whole number")
        spec = Spec(DTYPES[entry["dtype"]], shape)
        if min(shape, default=0) < 0 or start < 0 or stop - start != spec.num_bytes:
            raise self._bad(f"has a damaged header: {name} does not fill its bytes")
        if base + stop > total:
            raise self._bad(f"is cut off: {name} ends beyond it")
        self.specs[name], self._starts[name] = spec, base + start

    def _require_no_holes(self, begin: int, total: int) -> None:
        """Every byte is of one tensor: the format says so, and two that share bytes are a lie."""
        for name in sorted(self.specs, key=lambda n: (self._starts[n], self.specs[n].num_bytes)):
            if self._starts[name] != begin:
                raise self._bad(f"has a damaged header: {name} begins where it should not")
            begin += self.specs[name].num_bytes
        if begin != total:
            raise self._bad(f"is damaged: its last {total - begin} bytes are of no tensor")

    def _bad(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} {what}",
            where=str(self.path),
            remedy="copy or download the file again",
        )


class Writer:
    """A safetensors file being written: every tensor in the order of `specs`, then `close`.

    The file is on the disk when `close` returns. Raises OSError as the disk gives it.
    seen: is called with all bytes that are written, in their order.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, Spec],
        seen: Callable[[bytes | memoryview], object] = len,
    ) -> None:
        self._left = list(specs.items())
        self._left.reverse()
        self._seen = seen
        self._file = path.open("wb")
        self._write(_header(specs))

    def add(self, name: str, parts: Iterable[torch.Tensor]) -> None:
        """Write the next tensor of the header, cast to its dtype there.

        parts: its elements in row-major order, however they are divided, on any device. Raises
        ModelError for one that float16 cannot hold.
        """
        expected, spec = self._left.pop()
        written = 0
        for part in parts:
            # Only so much is ever held twice: cast, and on the host.
            for piece in part.detach().reshape(-1).split(PART_BYTES // spec.dtype.itemsize):
                cast = piece.to("cpu", spec.dtype).contiguous()
                _require_finite(name, cast, piece)
                self._write(_bytes_of(cast))
                written += piece.numel()
        assert (name, written) == (expected, spec.numel)

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._seen(content)

    def close(self) -> None:
        """Finish the file; every tensor of the header must have been added."""
        assert not self._left, f"{self._left[-1][0]} was not written"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close an unfinished file; what is still to be flushed to a full disk does not matter."""
        with contextlib.suppress(OSError):
            self._file.close()


def _require_finite(name: str, cast: torch.Tensor, piece: torch.Tensor) -> None:
    narrowed = cast.dtype == torch.float16 != piece.dtype
    if narrowed and not torch.equal(cast.isfinite(), piece.isfinite().cpu()):
        raise ModelError(
            f"{name} has elements beyond 65504, the largest number of float16",
            where=name,
            remedy="write the weights as bfloat16 or float32",
        )


def write(path: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write a whole file of tensors that exist already."""
    found = dict(tensors)
    specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()}
    writer = Writer(path, specs)
    for name, tensor in found.items():
        writer.add(name, [tensor])
    writer.close()


def equal(first: Callable[[int, int], torch.Tensor], second: Any, spec: Spec) -> bool:
    """Whether two tensors of one `spec` are the same bytes, some MiB at a time.

    first, second: their `read` of a range of elements.
    """
    step = PART_BYTES // spec.dtype.itemsize
    return all(
        torch.equal(first(a, b).view(torch.uint8), second(a, b).view(torch.uint8))
        for a in range(0, spec.numel, step)
        for b in [min(a + step, spec.numel)]
    )


def fill(flat: torch.Tensor, file: io.FileIO, offset: int) -> bool:
    """Read a 1-D CPU tensor's bytes from `offset` on; False when the file ends before it is full.

    file: opened for reading, unbuffered.
    """
    view = _bytes_of(flat)
    file.seek(offset)
    while view.nbytes:
        count = file.readinto(view)
        if not count:
            return False
        view = view[count:]
    return True


def _bytes_of(flat: torch.Tensor) -> memoryview:
    """The memory of a 1-D CPU tensor; NumPy has no bfloat16, so it goes through bytes."""
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def _header(specs: Mapping[str, Spec]) -> bytes:
    # transformers refuses a file that does not say which framework wrote it.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.num_bytes
        entry = {"dtype": _CODES[spec.dtype], "shape": spec.shape, "data_offsets": (offset, end)}
        header[name], offset = entry, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligned tensors can be mapped
    return struct.pack("<Q", len(text)) + text
