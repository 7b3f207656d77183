"""A copy in host memory of what torch.save would write, out of reach of later changes."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.serialization import DEFAULT_PROTOCOL


class Snapshot:
    """What torch.save would write of `content` now; `restore` gives it back, equal and apart.

    Taken as torch.save does it (torch/serialization.py, `_save`): everything but the storages is
    pickled, and of each storage one copy is made, on the host, however many tensors are views of
    it. So nothing that can be saved is forgotten, and nothing of it is shared with the original.
    Takes the bytes of the file that is to come. Raises what pickling raises.
    """

    def __init__(self, content: Any) -> None:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, DEFAULT_PROTOCOL)
        pickler.dump(content)
        self._pickled = buffer.getvalue()
        self._kept = pickler.kept

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        storages = {storage._cdata: storage.nbytes() for storage, _ in self._kept}
        return len(self._pickled) + sum(storages.values())

    def restore(self) -> Any:
        """The content, on the host; its tensors are views of the snapshot's own memory."""
        return _Unpickler(io.BytesIO(self._pickled), self._kept).load()


# A storage, and the type of its elements where a typed one was pickled.
_Kept = tuple[torch.UntypedStorage, torch.dtype | None]


class _Pickler(pickle.Pickler):
    """Puts a number in the place of each storage; `kept` has what it stands for."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.kept: list[_Kept] = []
        # By its address, and with the original, whose address could else be another's meanwhile.
        self._copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def persistent_id(self, value: Any) -> int | None:
        if isinstance(value, torch.TypedStorage):
            storage, dtype = value._untyped_storage, value.dtype
        elif isinstance(value, torch.UntypedStorage):
            storage, dtype = value, None
        else:
            return None
        if storage._cdata not in self._copies:
            self._copies[storage._cdata] = (storage, _copied(storage))
        self.kept.append((self._copies[storage._cdata][1], dtype))
        return len(self.kept) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, kept: list[_Kept]) -> None:
        super().__init__(file)
        self._kept = kept

    def persistent_load(self, number: int) -> Any:
        storage, dtype = self._kept[number]
        if dtype is None:
            return storage
        return torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _copied(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """By an operation of torch, so that `measure.accounting` sees what it takes."""
    copy = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cpu")
    if storage.nbytes():
        copy.copy_(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage))
    return copy.untyped_storage()
