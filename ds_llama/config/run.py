"""The run tree: what one training run is, as its JSON says it. Every section is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    Strict,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ds_llama.config.base import Frozen, Real, Whole
from ds_llama.config.model import NOT_ARCHITECTURE, LlamaConfig
from ds_llama.config.optimizer import AnyOptimizer

SOURCES = ("preset", "config", "pretrained")
MODEL_KEYS = frozenset({*SOURCES, *LlamaConfig.model_fields, *NOT_ARCHITECTURE})

Positive = Annotated[Whole, Field(gt=0)]


class ModelSource(Frozen):
    """Where the architecture comes from; `keys` are config.json keys laid over it, or all of it."""

    preset: str | None = None
    config: str | dict[str, Any] | None = None
    pretrained: str | None = None
    keys: dict[str, Any] = Field(default={}, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "keys" in data:
            return data
        keys = {name: value for name, value in data.items() if name not in SOURCES}
        return {**{name: data[name] for name in SOURCES if name in data}, "keys": keys}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in SOURCES if getattr(self, name) is not None}
        return {**named, **self.keys}


class Corpus(Frozen):
    """One of several shards, how often it is drawn from, and how many times over at most."""

    path: str = Field(min_length=1)
    weight: Real = Field(default=1.0, gt=0)
    max_epochs: Annotated[Real, Field(gt=0)] | None = None


def _form(value: Any) -> str:
    """Which of the two forms is meant, so that only its mistakes are reported."""
    return "several" if isinstance(value, (list, tuple)) else "one"


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    # After validation: pydantic's own min_length also counts entries that it has just refused.
    if not value:
        remedy = {"remedy": "name at least one shard"}
        raise PydanticCustomError("empty_list", "the list is empty", remedy)
    return value


_One = Annotated[str, Field(min_length=1), Tag("one")]
_Several = Annotated[tuple[Corpus, ...], Strict(False), AfterValidator(_not_empty), Tag("several")]


class DataConfig(Frozen):
    """Shards by their prefix, relative to the working directory, and how they become rows.

    packing: "windows" cuts the stream of tokens, "best_fit" lays whole documents into rows, "none"
    gives each a row. attention_mask: "block_causal" keeps documents apart and begins positions
    again at each; null means "causal" for windows, and the other two are "block_causal" always.
    truncation: what becomes of documents longer than a row where they are not cut into windows.
    """

    train: Annotated[_One | _Several, Discriminator(_form)]
    validation: str | None = None
    temperature: Annotated[Real, Field(gt=0)] | None = None
    sequence_length: Whole = Field(default=2048, ge=2)
    packing: Literal["windows", "best_fit", "none"] = "windows"
    attention_mask: Literal["causal", "block_causal"] | None = None
    truncation: Literal["right", "left", "drop", "split"] = "right"
    tokenizer: str | None = None

    @property
    def block_causal(self) -> bool:
        """Whether attention ends at the documents' borders."""
        return self.packing != "windows" or self.attention_mask == "block_causal"

    @field_validator("train", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        """A list may hold bare paths, each with weight 1."""
        if isinstance(value, list):
            return [{"path": item} if isinstance(item, str) else item for item in value]
        return value


class RecomputeConfig(Frozen):
    """What is recomputed in the backward pass; `activation_checkpointing` in the JSON says how."""

    part: Literal["block", "attention", "mlp"] = "block"
    every: Positive = 1


class TrainConfig(Frozen):
    """How long and in which batches. One pass over the data when neither length is given."""

    steps: Positive | None = None
    epochs: Annotated[Real, Field(gt=0)] | None = None
    global_batch_size: Positive | None = None
    micro_batch_size: Positive | None = None
    seed: Whole = Field(default=0, ge=0, lt=2**63)
    log_every_steps: Positive = 1
    recompute: RecomputeConfig | None = None
    compile: bool = False
    reproducible: bool = False
    check_replicas_every_steps: Positive | None = None
    accounting: bool = False


class EarlyStoppingConfig(Frozen):
    """End after `patience` evaluations in a row none of which is `min_delta` below the best."""

    patience: Positive = 3
    min_delta: Real = Field(default=0.0, ge=0)


class EvaluationConfig(Frozen):
    """When the held-out shard is read; None for `every_steps` means at the end."""

    every_steps: Positive | None = None
    max_batches: Positive | None = None
    early_stopping: EarlyStoppingConfig | None = None


class EmaConfig(Frozen):
    """Exponential moving average of the fp32 weights: what it forgets at an update, and its uses.

    `evaluate` adds its loss to each validation, `export` writes OUTPUT/export-ema at the end.
    """

    decay: Real = Field(default=0.999, ge=0, lt=1)
    evaluate: bool = False
    export: bool = False


class CheckpointConfig(Frozen):
    """What is saved and what is kept; None for `every_steps` means at the end.

    `background`: training goes on while a checkpoint is written from a copy in host memory.
    """

    every_steps: Positive | None = None
    keep_last: Positive = 3
    keep_every_steps: Positive | None = None
    background: bool = False
    export: bool = True


Action = Literal["skip", "stop", "rollback"]


class SpikeConfig(Frozen):
    """A loss more than `deviations` standard deviations above the mean of the last `window`."""

    deviations: Annotated[Real, Field(gt=0)] = 6.0
    window: Annotated[Whole, Field(ge=2)] = 100
    then: Action = "skip"


class StabilityConfig(Frozen):
    """What becomes of an update whose loss or gradient is not finite, or whose loss is a spike.

    "rollback" takes up the newest checkpoint and leaves out the samples since. `max_skips` updates
    skipped in a row end the run, as does a rank that is silent for `hang_timeout_s`.
    """

    nonfinite: Action = "skip"
    spike: SpikeConfig | None = None
    max_skips: Positive = 3
    max_rollbacks: Positive = 3
    hang_timeout_s: Annotated[Real, Field(ge=1, le=1e6)] | None = 1200.0


class WandbConfig(Frozen):
    """Weights & Biases; the key comes from its own login or environment, never from here."""

    project: str = "ds-llama"
    name: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    tags: Annotated[tuple[str, ...], Strict(False)] = ()


class TrackingConfig(Frozen):
    """Where the metrics go besides `metrics.jsonl`."""

    wandb: WandbConfig | None = None
    tensorboard: bool = False
    console: bool = True


class Run(Frozen):
    """One run. `deepspeed` holds the DeepSpeed JSON's content, whichever way it was named."""

    model: ModelSource
    data: DataConfig
    optimizer: AnyOptimizer | None = None
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ema: EmaConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    stability: StabilityConfig = StabilityConfig()
    tracking: TrackingConfig = TrackingConfig()
    deepspeed: dict[str, Any]
    output: str = Field(default="runs/run", min_length=1)
    resolved: dict[str, Any] | None = Field(
        default=None, description="What a run found out, in the run.json it writes; not read."
    )

    _path: Path | None = PrivateAttr(default=None)
    _deepspeed_place: tuple[str, str] = PrivateAttr(default=("run", "deepspeed"))
    _overridden: frozenset[str] = PrivateAttr(default=frozenset())
    _architecture: LlamaConfig | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The file that the run was read from."""
        return self._path

    @property
    def label(self) -> str:
        """What messages call the run: its file, or "run"."""
        return str(self._path) if self._path else "run"

    @property
    def deepspeed_place(self) -> tuple[str, str]:
        """File and key that messages about the DeepSpeed JSON begin with."""
        return self._deepspeed_place

    @property
    def deepspeed_path(self) -> str:
        """What a message about the DeepSpeed JSON names: its file, or the run's key."""
        return ":".join(part for part in self._deepspeed_place if part)

    @property
    def overridden(self) -> frozenset[str]:
        """Keys that the command line gave."""
        return self._overridden

    @property
    def architecture(self) -> LlamaConfig | None:
        """The model's config; None for weights of the hub that are not on this machine."""
        return self._architecture
