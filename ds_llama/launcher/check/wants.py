"""What a run asks of every host: the files it reads, where it writes, and how much of what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_llama.config.resolve import resolve
from ds_llama.config.run import Run
from ds_llama.launcher import ops
from ds_llama.planner.fit import HOST_PROCESS_BYTES, device_reserve
from ds_llama.planner.memory import memory

# What a checkpoint holds of a parameter beside its weight, at least: the fp32 master, and moments.
_STATE_BYTES = {"SGD": 4, "Lion": 8, "Adagrad": 8, "Muon": 8}
_ADAMW_BYTES = 12
_WEIGHT_BYTES = {"float32": 4}


@dataclass(frozen=True)
class Wants:
    """Paths as the run has them. `read`: must be there; `nvme`: folders that are written on each
    host for itself; `ops`: compiled before the ranks start."""

    read: tuple[str, ...]
    output: str
    nvme: tuple[str, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Need:
    """Bytes that the plan predicts. Of one rank: on the host, on its device (0 on CPU), on NVMe; of
    the whole run: one checkpoint; `keep`: so many stay, and another is written meanwhile."""

    host_bytes: int
    device_bytes: int
    nvme_bytes: int
    checkpoint_bytes: int
    keep: int


def wants(run: Run) -> Wants:
    """What can be told without knowing where the run goes."""
    kind = run.optimizer.type if run.optimizer is not None else None
    return Wants(
        tuple(dict.fromkeys(str(path) for path in _files(run))),
        run.output,
        tuple(dict.fromkeys(_nvme(run))),
        tuple(ops.needed(run.deepspeed, kind)),
    )


def need(run: Run, world_size: int, device: str) -> Need:
    """What `run` takes on so many ranks of a kind of device ("cuda" or "cpu"), by the planner.

    Raises ConfigErrors where the run does not fit that number of ranks.
    """
    resolved = resolve(run, world_size, device=device)
    held = memory(resolved)
    peak = held.device_peak.total
    on_cpu = device == "cpu"
    optimizer = resolved.run.optimizer
    state_bytes = _STATE_BYTES.get("" if optimizer is None else optimizer.type, _ADAMW_BYTES)
    if optimizer is None:  # the JSON's own, of which not every one has moments
        state_bytes = min(_STATE_BYTES.values())
    saved_bytes = state_bytes + _WEIGHT_BYTES.get(resolved.dtype, 2)
    return Need(
        host_bytes=held.total_peak_bytes if on_cpu else held.host_peak_bytes + HOST_PROCESS_BYTES,
        device_bytes=0 if on_cpu else peak + device_reserve(peak, world_size),
        nvme_bytes=held.nvme_bytes,
        checkpoint_bytes=resolved.model.num_parameters * saved_bytes,
        keep=run.checkpoint.keep_last,
    )


def _files(run: Run) -> Iterator[Path]:
    """The run's own files, then its data's; those of a hub name are on no host yet."""
    if run.path is not None:
        yield run.path
        if run.deepspeed_place[1] == "":
            yield Path(run.deepspeed_place[0])
        if isinstance(run.model.config, str):
            config = run.path.parent / run.model.config
            yield config / "config.json" if config.is_dir() else config
    if run.model.pretrained is not None and Path(run.model.pretrained).is_dir():
        yield Path(run.model.pretrained, "config.json")
    train = run.data.train
    shards = [train] if isinstance(train, str) else [corpus.path for corpus in train]
    for shard in [*shards, *filter(None, [run.data.validation])]:
        prefix = shard.removesuffix(".bin").removesuffix(".idx")
        yield from (Path(prefix + ".idx"), Path(prefix + ".bin"))
    if run.data.tokenizer is not None and Path(run.data.tokenizer).is_file():
        yield Path(run.data.tokenizer)


def _nvme(run: Run) -> Iterator[str]:
    zero = run.deepspeed.get("zero_optimization")
    for name in ("offload_optimizer", "offload_param"):
        section: Any = zero.get(name) if isinstance(zero, dict) else None
        if isinstance(section, dict) and section.get("device") == "nvme":
            path = section.get("nvme_path")
            yield from [path] if isinstance(path, str) else []
