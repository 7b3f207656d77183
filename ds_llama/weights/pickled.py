"""A file of `torch.save`, read by element range, and never run.

A pickle is a program. torch's unpickler for weights (`weights_only=True`) knows tensors and plain
containers, and refuses every other name that a file asks for. On "meta" it gives tensors without
memory that keep where in the file their elements are; those are read from there.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ds_llama.errors import CheckpointError
from ds_llama.weights.tensorfile import Spec, fill

_FORBIDDEN = re.compile(r"GLOBAL (\S+)")


class Reader:
    """An open file of tensors by name: `specs`, and `read` of any range of a tensor's elements.

    Raises CheckpointError for a file that is missing, cut off, of another kind, or asks for
    anything but tensors. Use as a context manager.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = self._load()
        self.specs = {name: Spec(t.dtype, tuple(t.shape)) for name, t in self._tensors.items()}
        self._file = path.open("rb", buffering=0)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements start … stop of a tensor, row major: 1-D, in the file's dtype, on the CPU."""
        tensor = self._tensors[name]
        stop = tensor.numel() if stop is None else stop
        if tensor.is_contiguous():
            return self._elements(name, start, stop - start)
        # A view, a transposed one for instance: all that it spans, then its own order.
        span = 1 + sum(
            (size - 1) * by for size, by in zip(tensor.shape, tensor.stride(), strict=True)
        )
        whole = self._elements(name, 0, span).as_strided(tensor.shape, tensor.stride())
        return whole.reshape(-1)[start:stop]

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _elements(self, name: str, start: int, numel: int) -> torch.Tensor:
        """Of the tensor's storage, counted from where the tensor begins in it."""
        tensor = self._tensors[name]
        begin = int(tensor.untyped_storage()._checkpoint_offset)  # type: ignore[attr-defined]
        found = torch.empty(numel, dtype=tensor.dtype)
        offset = begin + (tensor.storage_offset() + start) * tensor.element_size()
        if not fill(found, self._file, offset):
            raise self._bad(f"ends inside {name}")
        return found

    def _load(self) -> Mapping[str, torch.Tensor]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                stored = all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
        except OSError as error:
            raise self._bad(f"cannot be opened: {error.strerror}") from error
        except zipfile.BadZipFile as error:
            # What torch wrote before 1.6 is a bare pickle, read by nothing but a program.
            raise self._bad("is cut off, or no file that torch.save wrote since 1.6") from error
        if not stored:
            raise self._bad("is compressed, which torch.save does not do")
        try:
            found: Any = torch.load(self.path, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            raise self._refused(str(error)) from None
        except Exception as error:  # a damaged pickle fails in whatever it runs into
            what = f"is damaged ({type(error).__name__}: {_first_line(error)})"
            raise self._bad(what) from error
        if not isinstance(found, dict) or not all(map(_is_named_tensor, found.items())):
            raise self._bad("holds something else than tensors by their names")
        return found

    def _refused(self, message: str) -> CheckpointError:
        wanted = _FORBIDDEN.search(message)
        what = f"asks for {wanted[1]}" if wanted else "is no list of tensors"
        return CheckpointError(
            f"{self.path.name} {what}; a file of weights has no need to, and it was not run",
            where=str(self.path),
            remedy="take the model as safetensors, from a source that you trust",
        )

    def _bad(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} {what}",
            where=str(self.path),
            remedy="copy or download the file again",
        )


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    name, tensor = item
    plain = torch.is_tensor(tensor) and tensor.layout == torch.strided and not tensor.is_quantized
    return isinstance(name, str) and plain


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
