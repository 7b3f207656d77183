"""Any elements of any tensor of a committed step folder, at whatever stage and world size it was
saved, without reading the rest.

DeepSpeed's files hold, for each rank, flat partitions of which a parameter's elements may be
anywhere. layout.json says where (`layout`); a file's pickle says where in the file a
partition begins, and the elements are read from there. What was on NVMe has a file of its own
(`swapped`). A tensor is never held but in the caller's memory, and the folder has to be verified
first: pickles run what they say.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ds_llama.checkpoint import layout as layouts
from ds_llama.checkpoint import swapped
from ds_llama.errors import CheckpointError
from ds_llama.weights import tensorfile
from ds_llama.zero.pieces import MASTER

_CHUNK = 1 << 24  # bytes held beside the caller's tensor where they cannot be read into it


@dataclass(frozen=True)
class Extent:
    """Where a flat tensor is: `offset` in bytes from the beginning of `file`."""

    file: Path
    offset: int
    dtype: torch.dtype
    numel: int

    @classmethod
    def of(cls, file: Path, tensor: torch.Tensor) -> Extent:
        """Of a tensor that was loaded from `file` to "meta": torch then keeps where it was."""
        begin = int(tensor.untyped_storage()._checkpoint_offset)  # type: ignore[attr-defined]
        offset = begin + tensor.storage_offset() * tensor.element_size()
        return cls(file, offset, tensor.dtype, tensor.numel())

    def part(self, start: int, numel: int) -> Extent:
        """`numel` elements of it from `start` on."""
        offset = self.offset + start * self.dtype.itemsize
        return Extent(self.file, offset, self.dtype, numel)

    def read_into(self, out: torch.Tensor) -> None:
        """Fill a contiguous 1-D tensor of as many elements; of any dtype, on any device."""
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            if out.device.type == "cpu" and out.dtype == self.dtype:
                return _fill(file, out)
            for part in out.split(_CHUNK // self.dtype.itemsize):
                held = torch.empty(part.numel(), dtype=self.dtype)
                _fill(file, held)
                part.copy_(held)
        return None


def _fill(file: Any, out: torch.Tensor) -> None:
    rest = memoryview(out.detach().view(torch.uint8).numpy())
    while rest:
        count = file.readinto(rest)
        if not count:
            raise CheckpointError(
                "the file ends before the tensor that is in it",
                where=file.name,
                remedy="take another checkpoint: ds-llama checkpoint list shows which are complete",
            )
        rest = rest[count:]


def _is_moment(value: Any) -> bool:
    return torch.is_tensor(value) and value.dim() > 0


class Reader:
    """The tensors of one step folder; `state` is its state.json.

    kinds: "master" for the fp32 weights (of the training dtype where there are no others), and the
    optimizer's names of its moments. `shapes`: of every parameter, by name. Raises CheckpointError
    when layout.json cannot be read.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.folder, self._stage = folder, int(state["stage"])
        self.layout = layouts.read(folder)
        self.shapes, self._ranks = self.layout.shapes, self.layout.ranks
        self._order = state["parameter_order"]
        self._files: dict[Path, Any] = {}

    def kinds(self, name: str) -> list[str]:
        """What is saved of a parameter: "master", and its moments if it has any yet."""
        return [MASTER, *(kind for kind in self._saved(name) if kind != MASTER)]

    def dtype(self, name: str, kind: str) -> torch.dtype:
        """In which a kind is saved."""
        return next(iter(self._extents(name, kind, 0, 1)))[0].dtype

    def step(self, name: str) -> float | None:
        """How many updates the optimizer has counted for a parameter; None where it does not."""
        if self._stage == 0:
            found = self._whole_state(name).get("step")
            return self._number(self._module_file, found)
        for held in self.layout.holders(name):
            found = self._moments(held.rank, held.partition).get("step")
            return self._number(self._optimizer_file(held.rank), found)
        return None

    def read_into(self, name: str, kind: str, start: int, out: torch.Tensor) -> None:
        """Fill `out`, 1-D and contiguous, with the elements from `start` on of a flat tensor.

        Raises KeyError for a kind that is not there, CheckpointError for elements that no rank
        saved.
        """
        filled = 0
        for extent, begin in self._extents(name, kind, start, out.numel()):
            extent.read_into(out.narrow(0, begin - start, extent.numel))
            filled += extent.numel
        if filled != out.numel():
            raise CheckpointError(
                f"{filled} of {out.numel()} elements of {name} ({kind}) are in the checkpoint",
                where=str(self.folder),
                remedy="resume from another checkpoint, report the defect",
            )

    def whole(self, name: str, kind: str = MASTER) -> torch.Tensor:
        """A parameter's tensor of one kind, in its shape, on the CPU."""
        flat = torch.empty(math.prod(self.shapes[name]), dtype=self.dtype(name, kind))
        self.read_into(name, kind, 0, flat)
        return flat.view(self.shapes[name])

    def odd(self, rank: int, group: int) -> Mapping[str, torch.Tensor]:
        """What an optimizer keeps for a partition of a rank and lays out in a way of its own.

        Muon at stage 2: the momentum of the whole matrices that the partition has a part of.
        """
        sizes = self.layout.sizes(rank)
        if self._stage == 0 or group >= len(sizes) or (rank, group) in self._swapped:
            return {}
        file, numel = self._optimizer_file(rank), sizes[group]
        return {
            kind: self._tensor(Extent.of(file, value), value.shape)
            for kind, value in self._moments(rank, group).items()
            if _is_moment(value) and value.numel() != numel
        }

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """The module's buffers that are saved with it."""
        file = self._module_file if self._stage < 3 else self._model_file(0)
        found = self._load(file)
        held = {name: found["module"][name] for name in found.get("buffer_names") or ()}
        return {name: self._tensor(Extent.of(file, at), at.shape) for name, at in held.items()}

    # --- where a parameter's elements are ---------------------------------------------------

    def _extents(
        self, name: str, kind: str, start: int, numel: int
    ) -> Iterator[tuple[Extent, int]]:
        """Extents that hold elements `start` … of a tensor, each with the first that it holds."""
        for begin, extent in self._parts(name, kind, start, numel):
            first, last = max(start, begin), min(start + numel, begin + extent.numel)
            if first < last:
                yield extent.part(first - begin, last - first), first

    def _parts(self, name: str, kind: str, start: int, numel: int) -> Iterator[tuple[int, Extent]]:
        if name not in self.layout.trained:
            yield from self._frozen(name)
        elif self._stage == 0:
            held = self._module if kind == MASTER else self._whole_state(name)
            tensor = held[name] if kind == MASTER else held[kind]
            yield 0, Extent.of(self._module_file, tensor)
        else:
            for held in self.layout.holders(name, start, numel):
                whole = self._partition(held.rank, held.partition)[kind]
                yield held.start, whole.part(held.offset, held.count)

    def _frozen(self, name: str) -> Iterator[tuple[int, Extent]]:
        if self._stage < 3:
            yield 0, Extent.of(self._module_file, self._module[name])
            return
        numel = math.prod(self.shapes[name])
        for rank in range(self._ranks):
            file = self._model_file(rank)
            extent = Extent.of(file, self._load(file)["frozen_param_fragments"][name])
            start = rank * extent.numel
            if start < numel:
                yield start, extent.part(0, min(extent.numel, numel - start))

    def _partition(self, rank: int, group: int) -> Mapping[str, Extent]:
        """A partition's master and its moments, by kind."""
        if (rank, group) in self._swapped:
            return self._swapped[rank, group]
        file, moments = self._optimizer_file(rank), self._moments(rank, group)
        states = self._load(file)["optimizer_state_dict"]
        key = "fp32_flat_groups" if self._stage == 3 else "single_partition_of_fp32_groups"
        kept = {kind: value for kind, value in moments.items() if _is_moment(value)}
        return {k: Extent.of(file, v) for k, v in (kept | {MASTER: states[key][group]}).items()}

    @cached_property
    def _swapped(self) -> Mapping[tuple[int, int], Mapping[str, Extent]]:
        """Of the partitions that were on NVMe, by rank and index."""
        found: dict[tuple[int, int], dict[str, Extent]] = defaultdict(dict)
        for rank in range(self._ranks):
            path = self.folder / swapped.name(rank)
            if path.exists():
                with tensorfile.Reader(path) as file:
                    for key, spec in file.specs.items():
                        group, _, kind = key.partition(".")
                        extent = Extent(path, file.offset(key), spec.dtype, spec.numel)
                        found[rank, int(group)][kind] = extent
        return dict(found)

    def _saved(self, name: str) -> list[str]:
        if name not in self.layout.trained:
            return []
        if self._stage == 0:
            numel = math.prod(self.shapes[name])
            held = self._whole_state(name).items()
            return sorted(k for k, v in held if _is_moment(v) and v.numel() == numel)
        for held in self.layout.holders(name):
            numel = self.layout.sizes(held.rank)[held.partition]
            found = self._partition(held.rank, held.partition)
            return sorted(kind for kind, extent in found.items() if extent.numel == numel)
        return []

    # --- DeepSpeed's files ------------------------------------------------------------------

    @property
    def _module_file(self) -> Path:
        return self.folder / "mp_rank_00_model_states.pt"

    @property
    def _module(self) -> Mapping[str, torch.Tensor]:
        found: Mapping[str, torch.Tensor] = self._load(self._module_file)["module"]
        return found

    def _whole_state(self, name: str) -> Mapping[str, Any]:
        states = self._load(self._module_file)["optimizer"]["state"]
        found: Mapping[str, Any] = states.get(self._order.index(name), {})
        return found

    def _moments(self, rank: int, group: int) -> Mapping[str, Any]:
        states = self._load(self._optimizer_file(rank))["optimizer_state_dict"]
        held = states["optimizer_state_dict" if self._stage == 3 else "base_optimizer_state"]
        held = held["state"] if isinstance(held, dict) else dict(enumerate(held))
        found: Mapping[str, Any] = held.get(group, {})
        return found

    def _optimizer_file(self, rank: int) -> Path:
        return self._optimizer_files[rank]

    @cached_property
    def _optimizer_files(self) -> list[Path]:
        """Their names begin with the precision ("bf16_"), which is not always the run's."""
        names = {path.name: path for path in self.folder.glob("*zero_pp_rank_*_optim_states.pt")}
        ending = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
        return [
            next(path for name, path in names.items() if name.endswith(ending.format(rank)))
            for rank in range(self._ranks)
        ]

    def _model_file(self, rank: int) -> Path:
        return self.folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"

    def _load(self, file: Path) -> Any:
        """A file's content without its tensors' memory."""
        if file not in self._files:
            self._files[file] = torch.load(file, map_location="meta", weights_only=False)
        return self._files[file]

    def _number(self, file: Path, found: Any) -> float | None:
        if not torch.is_tensor(found):
            return found  # type: ignore[no-any-return]
        return float(self._tensor(Extent.of(file, found), found.shape))

    def _tensor(self, extent: Extent, shape: Any) -> torch.Tensor:
        flat = torch.empty(extent.numel, dtype=extent.dtype)
        extent.read_into(flat)
        return flat.view(shape)
