"""state.json: everything about a checkpoint that is not a tensor, readable without torch.

format, step, tokens_seen, samples_seen, …   where the run stood, as the trainer said
world_size, stage, dtype, offload            what a resume has to match
loss_scale, optimizer_step
gradient_units                               train.reproducible: log2 of each parameter's unit
model                                        config.json of the network, in Hugging Face's words
run, deepspeed_sha256, versions              what it was trained with; run holds the JSON
ranks: [{rng}, …]                            generators of every rank
parameter_order                              stage 0: names in the order of the optimizer's groups
checksums                                    of every parameter, master and moment (checksums.py)
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from ds_llama.errors import CheckpointError
from ds_llama.zero import engine as engines
from ds_llama.zero import exact

NAME = "state.json"
FORMAT = 1
# A resume with other values of these is refused; the remedy is the same for all.
MATCHED = ("stage", "world_size", "dtype", "offload")
SHAPES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)


def describe(resolved: Any) -> dict[str, Any]:
    """What the resolved run says about the layout of a checkpoint."""
    return {
        "world_size": resolved.world_size,
        "stage": resolved.stage,
        "dtype": resolved.dtype,
        "offload": {
            "optimizer": resolved.offload_optimizer,
            "parameters": resolved.offload_param,
        },
    }


def build(
    engine: Any,
    step: int,
    progress: dict[str, Any],
    resolved: Any,
    rngs: list[dict[str, Any]],
    checksums: dict[str, Any],
) -> dict[str, Any]:
    """The content of state.json. progress: what the trainer wants back on resume, JSON."""
    ours = {
        "format": FORMAT,
        **describe(resolved),
        "loss_scale": engines.loss_scale(engine),
        "optimizer_step": engines.adam_step(engine),
        "gradient_units": sums.exponents if (sums := exact.of(engine)) else None,
        "model": resolved.model.to_hf(),
        "run": resolved.to_json(),
        "deepspeed_sha256": _hash(resolved.deepspeed),
        "versions": _versions(),
        "ranks": [{"rng": rng} for rng in rngs],
        "parameter_order": engines.parameter_order(engine),
        "checksums": checksums,
    }
    reserved = ours.keys() & progress.keys()
    assert not reserved, f"state.json has its own {sorted(reserved)}"
    return {**progress, "step": step, **ours}


def progress(state: dict[str, Any]) -> dict[str, Any]:
    """What the trainer gave to `build`, and the step."""
    ours = {"format", *MATCHED, "loss_scale", "optimizer_step", "gradient_units", "model", "run"}
    ours |= {"deepspeed_sha256", "versions", "ranks", "parameter_order", "checksums"}
    return {key: value for key, value in state.items() if key not in ours}


def read(folder: Path) -> dict[str, Any]:
    """state.json of a step folder. Raises CheckpointError when it cannot be read."""
    path = folder / NAME
    try:
        state = json.loads(path.read_bytes())
        later = state["format"] > FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{NAME} cannot be read ({type(error).__name__}: {error})",
            where=str(path),
            remedy="take another checkpoint: ds-llama checkpoint list shows which are complete",
        ) from error
    if later:
        raise CheckpointError(
            f"{NAME} has format {state['format']}, this version reads up to {FORMAT}",
            where=str(path),
            remedy="use the version of ds_llama that wrote it",
        )
    return dict(state)


def require_same_layout(state: dict[str, Any], resolved: Any, where: Path) -> None:
    """Raise CheckpointError unless the run is laid out as the one that was saved."""
    now = describe(resolved)
    for key in MATCHED:
        if state[key] != now[key]:
            raise CheckpointError(
                f"the checkpoint has {_phrase(key, state[key])}, this run {_phrase(key, now[key])}",
                where=str(where / NAME),
                remedy="run with the checkpoint's value, or export the checkpoint and start from "
                'its weights ({"model": {"pretrained": FOLDER}})',
            )
    _require_same_optimizer(state["run"], resolved.to_json(), where)
    model = resolved.model.to_hf()
    for key in SHAPES:
        if state["model"].get(key) != model.get(key):
            raise CheckpointError(
                f"the checkpoint's model has {key} {state['model'].get(key)}, this run's "
                f"{model.get(key)}",
                where=str(where / NAME),
                remedy="run with the checkpoint's model, or give this run another output folder",
            )


def _require_same_optimizer(then: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Moments belong to a type, and to the groups that its parameters are divided into."""
    kinds, rows = zip(*(_optimizer(run) for run in (then, now)), strict=True)
    if kinds[0] != kinds[1] or rows[0] != rows[1]:
        what = [
            f"{kind} with {len(row)} rows of groups" for kind, row in zip(kinds, rows, strict=True)
        ]
        raise CheckpointError(
            f"the checkpoint's optimizer is {what[0]}, this run's {what[1]}"
            + (", over other parameters" if what[0] == what[1] else ""),
            where=str(where / NAME),
            remedy="run with the checkpoint's optimizer, or export the checkpoint and start from "
            'its weights ({"model": {"pretrained": FOLDER}})',
        )


def _optimizer(run: dict[str, Any]) -> tuple[str, list[list[str]]]:
    section = run.get("optimizer") or run["deepspeed"].get("optimizer") or {}
    rows = [list(row["parameters"]) for row in section.get("groups", ())]
    return str(section.get("type", "AdamW")), rows


def _phrase(key: str, value: Any) -> str:
    if key != "offload":
        return f"{key} {value}"
    parts = [f"{name} on {device}" for name, device in value.items() if device]
    return f"offload of {' and '.join(parts)}" if parts else "no offload"


def _hash(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _versions() -> dict[str, str]:
    from ds_llama import __version__

    packages = {name: metadata.version(name) for name in ("torch", "deepspeed", "transformers")}
    return {"ds_llama": __version__, **packages, "python": platform.python_version()}
