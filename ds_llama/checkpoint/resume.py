"""Load a committed checkpoint into an engine of any layout, and prove that it is it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_llama.checkpoint import checksums, ranks, rng
from ds_llama.checkpoint import state as states
from ds_llama.checkpoint.choose import examine
from ds_llama.checkpoint.layout import require_same_parameters
from ds_llama.checkpoint.reader import Reader
from ds_llama.checkpoint.restore import restore
from ds_llama.commit.verify import summary
from ds_llama.errors import CheckpointError
from ds_llama.zero import ema, exact, world
from ds_llama.zero import engine as engines


def resume(engine: Any, checkpoint: str | Path, resolved: Any) -> dict[str, Any]:
    """Load a step folder into a fresh engine; returns the trainer's state of then. Collective.

    Nothing is unpickled before every file's size and hash are the manifest's. Raises
    CheckpointError on every rank: damaged, or what `load` raises.
    """
    folder = Path(checkpoint).resolve()
    problems = examine(folder)
    if problems:
        raise CheckpointError(
            f"the checkpoint is not whole: {summary(problems)}",
            where=str(folder),
            remedy="resume from another one: ds-llama checkpoint list shows which are complete",
        )
    return load(engine, folder, resolved)


def load(engine: Any, folder: Path, resolved: Any) -> dict[str, Any]:
    """`resume` from a folder that has been examined: its shards are pickles. Collective.

    The folder may have been saved at another stage, offload or world size, and with other batches.
    Weights, masters and moments are then compared with the checksums of the engine that was saved,
    and, in a world of as many ranks, the generators set as they were. An average (`ema`) is dropped
    when the run has none. Raises CheckpointError on every rank: of another model, optimizer or
    precision, or not loaded as it was saved.
    """
    state = ranks.together("reading the state", folder, lambda: states.read(folder))
    ranks.together(
        "comparing", folder, lambda: states.require_same_network(state, resolved, folder)
    )
    reader = ranks.together("reading the layout", folder, lambda: Reader(folder, state))
    ranks.together(
        "comparing", folder, lambda: require_same_parameters(reader.layout, engine, folder)
    )
    ranks.together(f"loading {folder.name}", folder, lambda: restore(engine, reader))
    engines.set_counters(engine, state, groups=resolved.run.optimizer is None)
    checksums.check(engine, state["checksums"], str(folder))
    ranks.together("comparing", folder, lambda: _check_step(engine, state, folder))
    if resolved.run.ema is None:
        ema.drop(engine)
    if (sums := exact.of(engine)) is not None:
        sums.exponents.update(state.get("gradient_units") or {})
    if state["world_size"] == world.world_size():
        rng.restore(state["ranks"][world.rank()]["rng"])
    return states.progress(state)


def _check_step(engine: Any, state: dict[str, Any], folder: Path) -> None:
    now = engines.adam_step(engine)
    if now != state["optimizer_step"]:
        raise CheckpointError(
            f"optimizer_step is {now} after loading on rank {world.rank()}, and was "
            f"{state['optimizer_step']}",
            where=str(folder / states.NAME),
            remedy="do not train on from this: resume from another one, report the defect",
        )
