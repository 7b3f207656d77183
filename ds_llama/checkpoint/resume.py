"""Load a committed checkpoint into an engine of the same configuration, and prove that it is it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_llama.checkpoint import checksums, ranks, rng
from ds_llama.checkpoint import state as states
from ds_llama.commit.verify import verify
from ds_llama.errors import CheckpointError
from ds_llama.zero import ema, exact, world
from ds_llama.zero import engine as engines


def resume(engine: Any, checkpoint: str | Path, resolved: Any) -> dict[str, Any]:
    """Load a step folder into a fresh engine; returns the trainer's state of then. Collective.

    Nothing is unpickled before every file's size and hash are the manifest's. Weights, masters
    and moments are then compared with the checksums of the engine that was saved, the generators
    set as they were. An average (`ema`) is dropped when the run has none. Raises CheckpointError
    on every rank: damaged, of another stage, world size, dtype, offload or model, or not loaded as
    it was saved.
    """
    folder = Path(checkpoint).resolve()
    ranks.together(f"verifying {folder.name}", folder, lambda: _require_whole(folder))
    state = ranks.together("reading the state", folder, lambda: states.read(folder))
    ranks.together("comparing", folder, lambda: states.require_same_layout(state, resolved, folder))
    ranks.together(f"loading {folder.name}", folder, lambda: _load(engine, folder))
    checksums.check(engine, state["checksums"], str(folder))
    ranks.together("comparing", folder, lambda: _check_counters(engine, state, folder))
    if resolved.run.ema is None:
        ema.drop(engine)
    if (sums := exact.of(engine)) is not None:
        sums.exponents.update(state.get("gradient_units") or {})
    rng.restore(state["ranks"][world.rank()]["rng"])
    return states.progress(state)


def _require_whole(folder: Path) -> None:
    problems = verify(folder, part=(world.rank(), world.world_size()))
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise CheckpointError(
            f"the checkpoint is not whole: {problems[0]}{more}",
            where=str(folder),
            remedy="resume from another one: ds-llama checkpoint list shows which are complete",
        )


def _load(engine: Any, folder: Path) -> None:
    # Only with its defaults: load_module_only and load_optimizer_states=False load nothing, or the
    # `latest` tag, at stage 3, and say that they succeeded (deepspeed/runtime/engine.py:4614).
    path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    engines.share_moments(engine)
    if path is None:
        raise CheckpointError(
            "DeepSpeed found no files of its own in the checkpoint",
            where=str(folder),
            remedy="give the run's folder a path without the characters [ ] * ?, which DeepSpeed "
            "takes for a pattern",
        )


def _check_counters(engine: Any, state: dict[str, Any], folder: Path) -> None:
    now = {
        "optimizer_step": engines.adam_step(engine),
        "loss_scale": engines.loss_scale(engine),
    }
    for key, value in now.items():
        if value != state[key]:
            raise CheckpointError(
                f"{key} is {value} after loading on rank {world.rank()}, and was {state[key]}",
                where=str(folder / states.NAME),
                remedy="do not train on from this: resume from another one, report the defect",
            )
