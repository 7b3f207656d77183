"""From a run to every number that trains: no "auto", no default left unsaid. Pure.

run + world size + model ──> check ──> batch ──> precision ──> buckets ──> defaults ──> Resolved
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ds_llama.config import fill
from ds_llama.config.batch import Batch, nearest, solve
from ds_llama.config.deepspeed import BATCH_KEYS, check
from ds_llama.config.load import placed, warnings_of
from ds_llama.config.model import LlamaConfig
from ds_llama.config.optimizer import AdamW
from ds_llama.config.problems import Problem, at, raise_errors
from ds_llama.config.rules import Context
from ds_llama.config.run import RecomputeConfig, Run
from ds_llama.errors import ConfigError, ConfigErrors

_PACKAGES = ("ds_llama", "deepspeed", "torch", "transformers", "pydantic")


@dataclass(frozen=True)
class Resolved:
    """Everything effective. `run` has its own gaps filled too; `problems` are warnings."""

    run: Run
    model: LlamaConfig
    deepspeed: dict[str, Any]
    world_size: int
    micro_batch_size: int
    accumulation_steps: int
    global_batch_size: int
    total_steps: int | None
    dtype: str
    stage: int
    offload_optimizer: str | None
    offload_param: str | None
    problems: tuple[Problem, ...] = ()
    device: str = "cuda"

    @property
    def unsaved(self) -> str | None:
        """What of the run's state DeepSpeed cannot resume, so that it is not saved."""
        return next(iter(Context(self.deepspeed).unsaved.values()), None)

    def to_json(self) -> dict[str, Any]:
        """What a run writes as `run.json`: `load_run` reads it, and it resolves to the same."""
        tree = self.run.model_dump(mode="json", exclude={"resolved"})
        if self.run.model.pretrained is None:
            tree["model"] = self.model.to_hf()
        tree["deepspeed"] = copy.deepcopy(self.deepspeed)
        tree["resolved"] = {
            "world_size": self.world_size,
            "micro_batch_size": self.micro_batch_size,
            "accumulation_steps": self.accumulation_steps,
            "global_batch_size": self.global_batch_size,
            "total_steps": self.total_steps,
            "dtype": self.dtype,
            "stage": self.stage,
            "num_parameters": self.model.num_parameters,
            "versions": versions(),
        }
        return tree


def resolve(
    run: Run, world_size: int, *, model: LlamaConfig | None = None, device: str = "cuda"
) -> Resolved:
    """Every effective value of `run` on `world_size` ranks of a kind of device.

    model: the architecture, when the run names hub weights that are not on this machine. device:
    what torch calls it; without CUDA memory is not pinned unless the JSON says so. Raises
    ConfigErrors with everything that contradicts.
    """
    model = model or run.architecture
    if model is None:
        raise ConfigError(
            f"the architecture of {run.model.pretrained!r} is not on this machine",
            where=at(run.label, "model.pretrained"),
            remedy="download the weights, and name their folder",
        )
    problems = check(
        run.deepspeed, dialect="run", run=run, model=model, world_size=world_size, device=device
    )
    errors = [_at_deepspeed(run, p) for p in problems if p.severity == "error"]
    batch = _batch_or_errors(run, world_size, errors)
    filled = fill.Filling(run, model, batch, world_size, device)
    deepspeed = filled.deepspeed()
    raise_errors([_at_deepspeed(run, problem) for problem in filled.problems])
    context = Context(deepspeed)
    return Resolved(
        run=_filled_run(run, model, batch),
        model=model,
        deepspeed=deepspeed,
        world_size=world_size,
        micro_batch_size=batch.micro_size,
        accumulation_steps=batch.accumulation_steps,
        global_batch_size=batch.global_size,
        total_steps=run.train.steps,
        dtype={"bf16": "bfloat16", "fp16": "float16"}.get(context.half_precision or "", "float32"),
        stage=context.stage,
        offload_optimizer=context.offload("offload_optimizer"),
        offload_param=context.offload("offload_param"),
        problems=tuple(warnings_of(run, model, problems)),
        device=device,
    )


def _batch_or_errors(run: Run, world_size: int, errors: list[ConfigError]) -> Batch:
    """The batch; or ConfigErrors, with what was found before among them."""
    try:
        batch = _batch(run, world_size)
    except ConfigErrors as error:
        said = any(other.code == "batch-product" for other in errors)
        errors += [] if said else error.errors
    except ConfigError as error:
        errors.append(error)
    raise_errors(errors)
    return batch


def data_parallel_ranks(run: Run, world_size: int) -> int:
    """Ranks that see different data: the world without tensor and sequence parallelism."""
    context = Context(run.deepspeed)
    sharing = max(1, context.get("tensor_parallel.autotp_size", 1))
    sharing = int(sharing * context.get("sequence_parallel_size", 1))
    if world_size % sharing:
        raise ConfigError(
            f"world size {world_size} is not a multiple of tensor_parallel.autotp_size x "
            f"sequence_parallel_size ({sharing})",
            where=at(*run.deepspeed_place),
            remedy=f"start {sharing} ranks or a multiple",
        )
    return world_size // sharing


def _batch(run: Run, world_size: int) -> Batch:
    ranks = data_parallel_ranks(run, world_size)
    sizes = [
        _one(run, "train.global_batch_size", run.train.global_batch_size, BATCH_KEYS[0]),
        _one(run, "train.micro_batch_size", run.train.micro_batch_size, BATCH_KEYS[1]),
        _one(run, None, None, BATCH_KEYS[2]),
    ]
    total, micro, steps = (value for value, _ in sizes)
    batch = solve(total, micro, steps, ranks)
    if batch is not None:
        return batch
    given = [f"{name} ({value})" for value, name in sizes if value is not None]
    choices = nearest(total or ranks, micro, steps, ranks)
    raise ConfigErrors(
        [
            ConfigError(
                f"{' and '.join(given)} do not fit together on {ranks} data-parallel ranks",
                where=at(run.label, "train.global_batch_size"),
                remedy="take " + ", or ".join(choice.says(ranks) for choice in choices),
            )
        ]
    )


def _one(run: Run, name: str | None, value: int | None, key: str) -> tuple[int | None, str]:
    """One of the three sizes, from the run or from the DeepSpeed JSON, and what gave it."""
    other = Context(run.deepspeed).get(key)
    other = None if other is None else int(other)
    if value is not None and other is not None and value != other:
        error = ConfigError(
            f"{name} is {value} in the run, {key} is {other} in the DeepSpeed JSON",
            where=at(run.label, str(name)),
            remedy=f"keep one of them, or write {value} in both",
        )
        raise ConfigErrors([error])
    if value is not None:
        return value, str(name)
    return other, key


def _filled_run(run: Run, model: LlamaConfig, batch: Batch) -> Run:
    """The run with its gaps filled: sequence length, batch, length of training, optimizer."""
    data, train, optimizer = run.data, run.train, run.optimizer
    if "sequence_length" not in data.model_fields_set:
        length = min(data.sequence_length, model.max_position_embeddings)
        data = data.model_copy(update={"sequence_length": length})
    sizes: dict[str, Any] = {
        "global_batch_size": batch.global_size,
        "micro_batch_size": batch.micro_size,
    }
    if train.steps is None and train.epochs is None:
        sizes["epochs"] = 1.0
    if train.recompute is None and run.deepspeed.get("activation_checkpointing") is not None:
        sizes["recompute"] = RecomputeConfig()
    train = train.model_copy(update=sizes)
    if optimizer is None and run.deepspeed.get("optimizer") is None:
        optimizer = AdamW()
    if optimizer is not None and optimizer.schedule == "plateau":
        optimizer = optimizer.model_copy(update={"plateau": optimizer.plateau_settings})
    return run.model_copy(update={"data": data, "train": train, "optimizer": optimizer})


def _at_deepspeed(run: Run, problem: Problem) -> ConfigError:
    place, prefix = run.deepspeed_place
    file = None if prefix else place
    return placed(problem.to_error(place, prefix), run.label, file, run.overridden)


def versions() -> dict[str, str]:
    """Of the packages that a run stands on, those that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
