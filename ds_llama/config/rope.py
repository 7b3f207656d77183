"""RoPE parameters: reads both of Hugging Face's forms, writes the current one. Tables: model/rope.

Current form (transformers 5): `{"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, …}}`.
Old form: `{"rope_theta": 5e5, "rope_scaling": {"rope_type" | "type": "llama3", …} | null}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field

from ds_llama.config.base import Frozen, Real, Whole
from ds_llama.config.problems import Problem, did_you_mean

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]
DEFAULT_THETA = 10000.0

_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": (
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}


class RopeParameters(Frozen):
    """How positions become angles; the keys are transformers' `rope_parameters`."""

    model_config = ConfigDict(title="rope_parameters")

    rope_type: RopeType = "default"
    rope_theta: Real = Field(default=DEFAULT_THETA, gt=0)
    factor: Real | None = Field(default=None, ge=1)
    original_max_position_embeddings: Whole | None = Field(default=None, gt=0)
    low_freq_factor: Real | None = Field(default=None, gt=0)
    high_freq_factor: Real | None = Field(default=None, gt=0)
    attention_factor: Real | None = Field(default=None, ge=0)
    beta_fast: Real | None = Field(default=None, gt=0)
    beta_slow: Real | None = Field(default=None, gt=0)
    mscale: Real | None = None
    mscale_all_dim: Real | None = None
    truncate: bool | None = None

    def to_hf(self) -> dict[str, Any]:
        """The `rope_parameters` object of a config.json, without the keys that are not set."""
        return self.model_dump(exclude_none=True)

    def problems(self) -> Iterator[Problem]:
        """Keys that this rope_type needs and has not, and keys that it would ignore."""
        wanted = _REQUIRED[self.rope_type]
        for key in wanted:
            if getattr(self, key) is None:
                yield Problem(
                    "rope-missing-key",
                    "error",
                    f"rope_parameters.{key}",
                    f"rope_type {self.rope_type!r} needs {key!r}",
                    f"give {key!r}; rope_type {self.rope_type!r} needs {', '.join(wanted)}",
                )
        for key in sorted(self.to_hf().keys() - _used(self.rope_type)):
            yield Problem(
                "rope-unused-key",
                "error",
                f"rope_parameters.{key}",
                f"rope_type {self.rope_type!r} has no {key!r}",
                f"remove {key!r}, or choose a rope_type that uses it",
            )
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "llama3" and low is not None and high is not None and high <= low:
            yield Problem(
                "rope-frequency-factors",
                "error",
                "rope_parameters.high_freq_factor",
                f"high_freq_factor ({high:g}) must be greater than low_freq_factor ({low:g})",
                "Llama 3.1 has low_freq_factor 1 and high_freq_factor 4",
            )


def _used(kind: object) -> set[str]:
    names = {*_REQUIRED.get(str(kind), ()), *_OPTIONAL.get(str(kind), ())}
    return {"rope_type", "rope_theta", *names}


def read_rope(
    config: Mapping[str, Any], *, strict: bool = True
) -> tuple[dict[str, Any], list[Problem]]:
    """The raw rope_parameters of a config.json in either form, defaults of the file filled in.

    Published files carry keys that their rope_type ignores (`original_max_position_embeddings`
    beside `linear`, `finetuned`): with `strict` off they are dropped, as transformers does.
    """
    raw = config.get("rope_parameters")
    key = "rope_parameters"
    if raw is None:
        raw, key = config.get("rope_scaling"), "rope_scaling"
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        message = f"{key} is {raw!r}, not an object"
        remedy = 'write {"rope_type": …, "rope_theta": …}'
        return {}, [Problem("rope-form", "error", key, message, remedy)]
    rope = {name: value for name, value in raw.items() if value is not None}
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    # Published files have been seen with the theta inside, outside, and in both places.
    rope.setdefault("rope_theta", _first(config.get("rope_theta"), DEFAULT_THETA))
    if rope["rope_type"] in ("llama3", "yarn") and "max_position_embeddings" in config:
        outer = _first(
            config.get("original_max_position_embeddings"), config["max_position_embeddings"]
        )
        rope.setdefault("original_max_position_embeddings", outer)
    partial = _first(rope.pop("partial_rotary_factor", None), config.get("partial_rotary_factor"))
    found = [*_unsupported(rope["rope_type"], key), *_partial(partial)]
    if not strict:
        rope = {name: value for name, value in rope.items() if name in _used(rope["rope_type"])}
    return rope, found


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _unsupported(kind: object, key: str) -> Iterator[Problem]:
    known = get_args(RopeType)
    if kind not in known:
        yield Problem(
            "rope-type",
            "error",
            f"{key}.rope_type",
            f"rope_type {kind!r} is not supported",
            did_you_mean(str(kind), known),
        )


def _partial(value: object) -> Iterator[Problem]:
    if value not in (None, 1, 1.0):
        yield Problem(
            "rope-partial",
            "error",
            "partial_rotary_factor",
            f"partial_rotary_factor {value!r} rotates a part of each head, which LLaMA does not",
            "remove it, or take a model whose heads are rotated whole",
        )
