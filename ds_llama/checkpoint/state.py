"""state.json: everything about a checkpoint that is not a tensor, readable without torch.

format, step, tokens_seen, samples_seen, …   where the run stood, as the trainer said
world_size, stage, dtype, offload            how it is laid out
optimizer_step, loss_scaler, counters        of the engine
lr_scheduler, groups                         of an optimizer that the DeepSpeed JSON names
gradient_units                               train.reproducible: log2 of each parameter's unit
model                                        config.json of the network, in Hugging Face's words
run, deepspeed_sha256, versions              what it was trained with; run holds the JSON
ranks: [{rng}, …]                            generators of every rank
parameter_order                              stage 0: names in the order of the optimizer's groups
checksums                                    of every parameter, master and moment (checksums.py)

What of which parameter is where is in layout.json (layout.py).
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ds_llama.checkpoint import layout, rng
from ds_llama.errors import CheckpointError
from ds_llama.zero import engine as engines
from ds_llama.zero import exact

NAME = "state.json"
FORMAT = 3
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
    ranks: list[dict[str, Any]],
    checksums: dict[str, Any],
) -> dict[str, Any]:
    """The content of state.json.

    progress: what the trainer wants back on resume, JSON. ranks: `of_rank` of each.
    """
    ours = {
        "format": FORMAT,
        **describe(resolved),
        **engines.counters(engine),
        "gradient_units": sums.exponents if (sums := exact.of(engine)) else None,
        "model": resolved.model.to_hf(),
        "run": resolved.to_json(),
        "deepspeed_sha256": _hash(resolved.deepspeed),
        "versions": _versions(),
        "ranks": [{"rng": rank["rng"]} for rank in ranks],
        "parameter_order": engines.parameter_order(engine),
        "checksums": checksums,
    }
    reserved = ours.keys() & progress.keys()
    assert not reserved, f"state.json has its own {sorted(reserved)}"
    return {"trainer": [*progress, "step"], **progress, "step": step, **ours}


def of_rank(engine: Any) -> dict[str, Any]:
    """What every rank adds to state.json, and to layout.json."""
    return {"rng": rng.capture(), "layout": layout.of_rank(engine)}


@dataclass(frozen=True)
class Content:
    """What rank 0 writes beside the shards, taken between two steps by all ranks."""

    state: dict[str, Any]
    parameters: list[list[Any]]
    layouts: list[str]

    @classmethod
    def of(cls, engine: Any, state: dict[str, Any], ranks: list[dict[str, Any]]) -> Content:
        """`state`: from `build`; `ranks`: `of_rank` of each."""
        return cls(state, layout.parameters(engine), [rank["layout"] for rank in ranks])

    def files(self) -> dict[str, bytes]:
        """By name, for one rank and any thread."""
        return {
            NAME: (json.dumps(self.state, indent=1) + "\n").encode(),
            layout.NAME: layout.encode(layout.fold(self.parameters, self.layouts)),
        }


def progress(state: dict[str, Any]) -> dict[str, Any]:
    """What the trainer gave to `build`, and the step."""
    return {key: state[key] for key in state["trainer"]}


def read(folder: Path) -> dict[str, Any]:
    """state.json of a step folder. Raises CheckpointError when it cannot be read."""
    path = folder / NAME
    try:
        state = json.loads(path.read_bytes())
        written = int(state["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{NAME} cannot be read ({type(error).__name__}: {error})",
            where=str(path),
            remedy="take another checkpoint: ds-llama checkpoint list shows which are complete",
        ) from error
    if written != FORMAT:
        raise CheckpointError(
            f"{NAME} has format {written}, this version reads {FORMAT}",
            where=str(path),
            remedy="use the version of ds_llama that wrote it",
        )
    return dict(state)


def require_same_network(state: dict[str, Any], resolved: Any, where: Path) -> None:
    """Raise CheckpointError unless the run trains the network that was saved, in its precision.

    Stage, offload, world size and batches may be others.
    """
    then, now = (_identity(run) for run in (state["run"], resolved.to_json()))
    then["dtype"], now["dtype"] = state["dtype"], resolved.dtype
    if "Muon" in (then["optimizer"], now["optimizer"]) and {state["stage"], resolved.stage} != {3}:
        # Whole matrices at stages 1 and 2, in an order that the partitions give.
        own, others = describe(resolved), {key: state[key] for key in describe(resolved)}
        then["layout, which Muon's momentum goes by,"] = _layout(others)
        now["layout, which Muon's momentum goes by,"] = _layout(own)
    for key in then:
        if then[key] != now[key]:
            raise CheckpointError(
                f"the checkpoint's {key} is {then[key]}, this run's {now[key]}",
                where=str(where / NAME),
                remedy="run with the checkpoint's value, or export the checkpoint and start from "
                'its weights ({"model": {"pretrained": FOLDER}})',
            )
    model = resolved.model.to_hf()
    for key in SHAPES:
        if state["model"].get(key) != model.get(key):
            raise CheckpointError(
                f"the checkpoint's model has {key} {state['model'].get(key)}, this run's "
                f"{model.get(key)}",
                where=str(where / NAME),
                remedy="run with the checkpoint's model, or give this run another output folder",
            )


def _layout(found: dict[str, Any]) -> str:
    offloaded = [f"{name} on {device}" for name, device in found["offload"].items() if device]
    return f"stage {found['stage']} on {found['world_size']} ranks with " + (
        f"offload of {' and '.join(offloaded)}" if offloaded else "no offload"
    )


def _identity(run: dict[str, Any]) -> dict[str, Any]:
    """What moments and masters mean: the optimizer's type, and in what they are kept."""
    section = run.get("optimizer") or run["deepspeed"].get("optimizer") or {}
    bf16 = run["deepspeed"].get("bf16") or {}
    keys = ("bf16_master_weights_and_grads", "bf16_optimizer_states")
    kept = ["bf16" if bf16.get(key) else "fp32" for key in keys]
    return {
        "optimizer": str(section.get("type", "AdamW")),
        "precision of masters and moments": " and ".join(kept),
    }


def _hash(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _versions() -> dict[str, str]:
    from ds_llama import __version__

    packages = {name: metadata.version(name) for name in ("torch", "deepspeed", "transformers")}
    return {"ds_llama": __version__, **packages, "python": platform.python_version()}
