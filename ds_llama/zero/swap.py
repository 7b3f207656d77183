"""Offload to NVMe: what DeepSpeed needs before it swaps, and what it has swapped, read for a while.

An update reads one partition of the optimizer at a time into buffers, and writes it back; a forward
pass does the same with slices of weights. In between a checkpoint reads them by the same calls.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.swap_tensor import (
    async_swapper,
    optimizer_utils,
    partitioned_optimizer_swapper,
    partitioned_param_swapper,
)
from torch import nn

from ds_llama.config.resolve import Resolved
from ds_llama.errors import ConfigError, MachineError
from ds_llama.measure import accounting
from ds_llama.measure.traffic import swapped
from ds_llama.measure.waits import swapping
from ds_llama.zero import world

# Kept open as long as the process lives: the kernel lets go of the lock with it.
_HELD: dict[str, int] = {}
_SECTOR = 512  # bytes: what memory for direct I/O is aligned to


def prepare(resolved: Resolved) -> None:
    """Raise where swapping would fail or harm another run; nothing without NVMe, or when repeated.

    ConfigError: `nvme_path` is no folder, its file system does no direct I/O, or another process
    swaps there: DeepSpeed names its files by rank alone and begins by deleting what it finds
    (partitioned_param_swapper.py:87). MachineError: libaio is missing.
    """
    zero = resolved.deepspeed["zero_optimization"]
    for name in ("offload_optimizer", "offload_param"):
        section = zero.get(name) or {}
        if section.get("device") == "nvme":
            where = f"{resolved.run.deepspeed_path}:zero_optimization.{name}.nvme_path"
            _claim(Path(section["nvme_path"]), where)
            _require_op()
            tell()


def mend(model: nn.Module) -> None:
    """Let the swapper of a model's parameters be asked for the same parameter twice in one call.

    The prefetch looks ahead over forward and backward: where a parameter's two uses are neighbours
    there, as the LM head's are, it asks for it twice and dies in an assertion
    (partitioned_param_coordinator.py:684, partitioned_param_swapper.py:185).
    """
    for swapper in {getattr(p, "nvme_swapper", None) for p in model.parameters()} - {None}:
        if not hasattr(swapper, "ds_llama_swap_in"):
            swapper.ds_llama_swap_in = swapper.swap_in
            swapper.swap_in = _once(swapper.swap_in)


def keep_unaligned(engine: Any) -> None:
    """Leave in memory what direct I/O could not read back: gradients at odd places of a partition.

    They are read into the middle of a buffer, which the kernel refuses unless it is at a multiple
    of 512 bytes; nobody looks, and the update is made with what the buffer held before
    (swap_tensor/partitioned_optimizer_swapper.py:195). What is not swapped waits in memory.
    """
    swapper = getattr(engine.optimizer, "optimizer_swapper", None)
    if swapper is None:
        return
    adjust = swapper._adjust_for_misaligned_lengths

    def run(tensors: Any, offsets: Any) -> Any:
        found = adjust(tensors, offsets)
        for tensor, offset in zip(*found, strict=True):
            if offset * tensor.element_size() % _SECTOR:
                tensor.swappable = False
        return found

    swapper._adjust_for_misaligned_lengths = run


def _once(swap_in: Any) -> Any:
    def run(params: list[nn.Parameter], *args: Any, **kwargs: Any) -> None:
        swap_in(list({id(param): param for param in params}.values()), *args, **kwargs)

    return run


def is_away(engine: Any, index: int) -> bool:
    """Whether a partition of the optimizer has memory of its own during an update only.

    Small ones stay in memory (swap_tensor/optimizer_utils.py:224). How many elements its tensors
    have does not say it: the pipelined swapper leaves them looking at buffers that others use now
    (pipelined_optimizer_swapper.py:198).
    """
    optimizer = engine.optimizer
    swaps = getattr(optimizer, "swap_optimizer", False)
    return bool(swaps and optimizer._swappable_optimizer_subgroup(index))


@contextmanager
def resident(engine: Any, index: int, *, changed: bool = False) -> Iterator[None]:
    """The master and the moments of a partition in memory while the context is open.

    changed: they are written back. Not for between a backward pass and its update. Nothing is done
    for a partition that is not on NVMe.
    """
    if not is_away(engine, index):
        yield
        return
    optimizer = engine.optimizer
    flat, swapper = optimizer.fp32_partitioned_groups_flat[index], optimizer.optimizer_swapper
    swapper.swap_in_optimizer_state(flat, async_parameter=None)
    try:
        yield
    except BaseException:
        optimizer._release_swap_buffers(index)
        raise
    if not changed:
        optimizer._release_swap_buffers(index)
        return
    swapper.swap_out_optimizer_state(flat, async_swap=False)
    # Moments that were made inside would stay in memory until the next update of the pipelined one.
    swapper._get_param_swap_info(flat).release_memory()
    flat.grad = None


def forget_states(engine: Any) -> None:
    """Before moments are made anew: a swapper lists those of a partition once, and keeps to it."""
    optimizer = engine.optimizer
    if getattr(optimizer, "swap_optimizer", False):
        optimizer.optimizer_swapper.purge_state()
        for index, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            if is_away(engine, index):
                optimizer.optimizer.state.pop(flat, None)


@contextmanager
def slice_of(parameter: nn.Parameter, *, changed: bool = False) -> Iterator[torch.Tensor]:
    """This rank's slice of a ZeRO-3 parameter, flat, read from NVMe where it lives there.

    changed: it is then written back.
    """
    shard, swapper = parameter.ds_tensor, getattr(parameter, "nvme_swapper", None)
    if shard.status.name == "INFLIGHT":
        swapper.synchronize_reads()
    if shard.status.name == "AVAILABLE":
        yield shard.data
        return
    swapper.swap_in([parameter], async_op=False)
    try:
        yield shard.data
    except BaseException:
        swapper.remove_partition_and_release_buffers([parameter])
        raise
    if changed:
        swapper.swap_out_and_release([parameter])
    else:
        swapper.remove_partition_and_release_buffers([parameter])


@cache
def tell() -> None:
    """Let whoever counts know of every tensor that DeepSpeed reads or writes there, and of buffers;
    and whoever takes the time, of what is waited for.

    All four swappers go through two functions (swap_tensor/utils.py:21), each by a name of its own.
    Page-locked buffers are made outside torch: an Account would see one when it is first used.
    """
    for module in (
        async_swapper,
        optimizer_utils,
        partitioned_optimizer_swapper,
        partitioned_param_swapper,
    ):
        for name, way in (("swap_in_tensors", "read"), ("swap_out_tensors", "written")):
            if hasattr(module, name):
                setattr(module, name, _telling(getattr(module, name), way))
    handle = AsyncIOBuilder().load(verbose=False).aio_handle
    handle.new_cpu_locked_tensor = _counted(handle.new_cpu_locked_tensor)
    handle.wait = _timed(handle.wait)


def _counted(make: Any) -> Any:
    def run(*args: Any) -> Any:
        made = make(*args)
        if (account := accounting.entered()) is not None:
            account.track([made])
        return made

    return run


def _telling(swap_tensors: Any, way: str) -> Any:
    def run(handle: Any, buffers: Any, paths: Any) -> Any:
        swapped(**{way: [buffer for buffer, _ in zip(buffers, paths, strict=False)]})
        with swapping():
            return swap_tensors(handle, buffers, paths)

    return run


def _timed(wait: Any) -> Any:
    def run(handle: Any) -> Any:
        with swapping():
            return wait(handle)

    return run


def _claim(folder: Path, where: str) -> None:
    path = folder / f".ds_llama-rank{world.rank()}.lock"
    if str(path) in _HELD:
        return
    if not folder.is_dir():
        raise ConfigError(
            f"nvme_path {folder} is not a folder",
            where=where,
            remedy="name a folder on a local NVMe disk; on the command line deepspeed."
            f"{where.rsplit(':', 1)[-1]}=FOLDER",
        )
    try:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"nvme_path {folder} cannot be swapped to, which needs direct I/O: {error.strerror}",
            where=where,
            remedy="name a folder that you may write to, on a local disk",
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise ConfigError(
            f"another run swaps to {folder}, and each would delete the other's weights",
            where=where,
            remedy="give every run a folder of its own",
        ) from error
    _HELD[str(path)] = file


@cache
def _require_op() -> None:
    if not AsyncIOBuilder().is_compatible():
        raise MachineError(
            "offload to NVMe needs libaio and its headers, which are not there",
            where="libaio.h",
            remedy="install them (Debian, Ubuntu: apt install libaio-dev; Fedora, RHEL: "
            "dnf install libaio-devel), or offload to the host",
        )
