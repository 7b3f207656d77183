"""The `optimizer` section: the keys that all types share, and one class for each type.

A key that a type does not have is an error that names those it has, so that a `momentum` beside
AdamW is not ignored. Defaults are what LLaMA is trained with, where anybody does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Strict, Tag
from pydantic_core import PydanticCustomError

from ds_llama.config.base import Frozen, Real, Whole

Fraction = Annotated[Real, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Fraction, Fraction], Strict(False)]
Kind = Literal["AdamW", "SGD", "Lion", "Adagrad", "Muon"]


def _not_empty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        remedy = {"remedy": 'name parameters, for instance ["*.embed_tokens.*"]'}
        raise PydanticCustomError("empty_list", "the list is empty", remedy)
    return value


_Pattern = Annotated[str, Field(min_length=1)]


class GroupConfig(Frozen):
    """Parameters with settings of their own; what is null is as it would be without the row.

    parameters: shell patterns over names; a parameter belongs to the first row that matches it.
    gradient_clipping: the largest norm of this row's gradient.
    """

    parameters: Annotated[tuple[_Pattern, ...], Strict(False), AfterValidator(_not_empty)]
    lr: Annotated[Real, Field(ge=0)] | None = None
    weight_decay: Annotated[Real, Field(ge=0)] | None = None
    gradient_clipping: Annotated[Real, Field(gt=0)] | None = None


class PlateauConfig(Frozen):
    """`torch.optim.lr_scheduler.ReduceLROnPlateau` in its own words, over the validation loss."""

    factor: Real = Field(default=0.5, gt=0, lt=1)
    patience: Whole = Field(default=2, ge=0)
    threshold: Real = Field(default=1e-4, ge=0, le=1)
    cooldown: Whole = Field(default=0, ge=0)


class OptimizerConfig(Frozen):
    """What every type has: the learning rate over the run, decay, groups and clipping by value."""

    type: Kind
    lr: Real = Field(ge=0)
    weight_decay: Real = Field(ge=0)
    schedule: Literal["cosine", "linear", "constant", "wsd", "plateau"] = "cosine"
    warmup_steps: Whole = Field(default=0, ge=0)
    min_lr_ratio: Real = Field(default=0.1, ge=0, le=1)
    decay_steps: Annotated[Whole, Field(gt=0)] | None = None
    plateau: PlateauConfig | None = None
    groups: Annotated[tuple[GroupConfig, ...], Strict(False)] = ()
    clip_value: Annotated[Real, Field(gt=0)] | None = None

    @property
    def plateau_settings(self) -> PlateauConfig:
        """`plateau`, or its defaults."""
        return self.plateau or PlateauConfig()

    @property
    def clips_by_group(self) -> bool:
        """Whether a row has a norm of its own to be clipped to."""
        return any(group.gradient_clipping is not None for group in self.groups)

    @property
    def clips_itself(self) -> bool:
        """Whether DeepSpeed's one norm over all gradients has no place beside this."""
        return self.clips_by_group or self.clip_value is not None or self.type == "Muon"


class AdamW(OptimizerConfig):
    """Decoupled decay; the LLaMA papers' values."""

    type: Literal["AdamW"] = "AdamW"
    lr: Real = Field(default=3e-4, ge=0)
    betas: Betas = (0.9, 0.95)
    eps: Real = Field(default=1e-8, gt=0)
    weight_decay: Real = Field(default=0.1, ge=0)


class SGD(OptimizerConfig):
    """torch's: the buffer is momentum x buffer + gradient, decay is added to the gradient."""

    type: Literal["SGD"] = "SGD"
    lr: Real = Field(default=0.1, ge=0)
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Real = Field(default=1e-4, ge=0)


class Lion(OptimizerConfig):
    """Sign of a momentum; betas as its paper takes for language models, a third of AdamW's lr with
    three times its decay (Chen et al. 2023, arXiv 2302.06675, section 5)."""

    type: Literal["Lion"] = "Lion"
    lr: Real = Field(default=1e-4, ge=0)
    betas: Betas = (0.95, 0.98)
    weight_decay: Real = Field(default=0.3, ge=0)


class Adagrad(OptimizerConfig):
    """torch's defaults; decay is added to the gradient."""

    type: Literal["Adagrad"] = "Adagrad"
    lr: Real = Field(default=1e-2, ge=0)
    eps: Real = Field(default=1e-10, gt=0)
    weight_decay: Real = Field(default=0.0, ge=0)


class Muon(OptimizerConfig):
    """Orthogonalised momentum for the matrices of the blocks, AdamW for all other parameters.

    `lr`, `momentum` and `ns_method` are Muon's, `adam_lr`, `betas` and `eps` AdamW's; the schedule
    moves both rates in proportion. Nesterov momentum, and the rate times sqrt(max(1, rows /
    columns)), as its author's (kellerjordan.github.io/posts/muon).
    """

    type: Literal["Muon"] = "Muon"
    lr: Real = Field(default=0.02, gt=0)
    momentum: Fraction = 0.95
    ns_method: Literal["standard", "gram"] = "standard"
    adam_lr: Real = Field(default=3e-4, ge=0)
    betas: Betas = (0.9, 0.95)
    eps: Real = Field(default=1e-8, gt=0)
    weight_decay: Real = Field(default=0.01, ge=0)


class _NoSuchType(OptimizerConfig, extra="ignore"):
    """What an unknown type is validated as, so that the type is what is reported."""

    lr: Real = 0.0
    weight_decay: Real = 0.0


def _type(value: Any) -> str:
    kind = value.get("type", "AdamW") if isinstance(value, Mapping) else getattr(value, "type", "")
    if not isinstance(value, (Mapping, OptimizerConfig)):
        return "AdamW"  # which says that an object is wanted
    return kind if isinstance(kind, str) and kind in TYPES else "unknown"


TYPES: dict[str, type[OptimizerConfig]] = {
    "AdamW": AdamW,
    "SGD": SGD,
    "Lion": Lion,
    "Adagrad": Adagrad,
    "Muon": Muon,
}
AnyOptimizer = Annotated[
    Annotated[AdamW, Tag("AdamW")]
    | Annotated[SGD, Tag("SGD")]
    | Annotated[Lion, Tag("Lion")]
    | Annotated[Adagrad, Tag("Adagrad")]
    | Annotated[Muon, Tag("Muon")]
    | Annotated[_NoSuchType, Tag("unknown")],
    Discriminator(_type),
]
