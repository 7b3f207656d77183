"""What one rank's loss or gradient does to a run, and a run that goes on as if it had not stopped.

Every poison is put into the last rank's loss alone: all ranks have to come to the same decision.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_llama.checkpoint import checksums
from ds_llama.commit import disk
from ds_llama.data.shards import ShardWriter
from ds_llama.errors import RunError
from ds_llama.trainer.build import construct
from ds_llama.trainer.state import TrainState
from ds_llama.trainer.train import train
from ds_llama.zero import engine as engines
from ds_llama.zero import step as steps
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.campaigns.resume_anywhere import swapping_little
from tests.distributed.cells.nvme import on_nvme
from tests.distributed.runs import TOKENS, VOCAB, global_batch, make_run, split

BATCH, MICRO = 4, 2
POISONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "loss": lambda loss: loss * math.nan,
    "gradient": lambda loss: loss + torch.sqrt(loss * 0),  # its value is right
    "spike": lambda loss: loss * 50,
}


@contextmanager
def poisoned(kind: str, *at: int) -> Iterator[None]:
    """The last rank's loss is spoilt at its `at`-th micro-batches, from 1."""
    whole, calls = steps._summed_loss, iter(range(1, 10**6))

    def spoilt(*words: Any) -> torch.Tensor:
        loss = whole(*words)
        wanted = next(calls) in at and world.rank() == world.world_size() - 1
        return POISONS[kind](loss) if wanted else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_summed_loss", spoilt)
        yield


def shard(folder: Path) -> str:
    """Random tokens, made by rank 0: 60 samples."""
    prefix = folder / "shard"
    if world.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        ids = torch.randint(0, VOCAB, (60 * TOKENS,), generator=torch.Generator().manual_seed(7))
        with ShardWriter(prefix, vocab_size=VOCAB) as writer:
            writer.add(ids.numpy())
    torch.distributed.barrier()
    return str(prefix)


def trained(folder: Path, count: int = 6, **sections: Any) -> TrainState:
    """A run of the trainer in `folder`, with a fresh engine: from its newest checkpoint, if any."""
    data = {"train": shard(folder.parent), "sequence_length": TOKENS}
    defaults = {
        "data": data,
        "train": {"steps": count, "global_batch_size": BATCH, "micro_batch_size": MICRO},
        "checkpoint": {"every_steps": 2, "export": False},
        "tracking": {"console": False},
    }
    run = make_run(folder, **(defaults | sections))
    return train(register(construct(run), run), run)


def read(path: Path) -> list[dict[str, Any]]:
    torch.distributed.barrier()
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two runs have in common: all but times, rates and memory."""
    odd = ("_s", "_per_s_per_device", "_bytes", "mfu")
    found = [{k: v for k, v in row.items() if not k.endswith(odd)} for row in rows]
    assert {"step", "loss", "lr", "grad_norm", "skipped", "tokens_seen"} <= found[0].keys()
    return found


def said_by_all(action: Callable[[], Any]) -> str:
    """What of the RunError that `action` raises, the same on all ranks."""
    with pytest.raises(RunError) as caught:
        action()
    words: list[Any] = [None] * world.world_size()
    torch.distributed.all_gather_object(words, str(caught.value))
    assert len(set(words)) == 1, words
    return caught.value.what


def held(engine: Any) -> dict[str, dict[str, str]]:
    """Checksums whatever is gathered at the moment, which at stage 3 a skipped update changes."""
    return checksums.compute(engine)["parameters"]


def a_refused_update_leaves_no_trace(folder: Path, **keys: Any) -> None:
    """Weights, masters, moments and loss scale are as if the window had not been seen."""

    def engine_of() -> Any:
        run = make_run(folder, world=world.world_size(), **keys)
        return register(construct(run), run)

    def one(engine: Any, number: int, *, accept: bool = True) -> Any:
        rows = MICRO * engine.gradient_accumulation_steps()
        batch = global_batch(number, rows * world.world_size())
        window = split(batch, MICRO, world.rank(), world.world_size())
        return take_step(engine, window, accept=lambda loss, norm: accept)

    engine, twin = engine_of(), engine_of()
    one(engine, 1), one(twin, 1)
    kept, scale = held(engine), engines.loss_scale(engine)
    refused = one(engine, 2, accept=False)
    assert (refused.applied, refused.grad_norm) == (False, None)
    assert math.isfinite(refused.loss)
    assert held(engine) == kept
    assert engines.loss_scale(engine) == scale
    assert (engine.global_steps, engine.skipped_steps) == (2, 1)
    after, wanted = one(engine, 3), one(twin, 3)
    assert after == wanted
    assert (after.grad_norm, after.clip_coef) == (wanted.grad_norm, wanted.clip_coef)
    assert held(engine) == held(twin) != kept
    assert engines.adam_step(engine) == engines.adam_step(twin) == 2


def skips(folder: Path, *, kind: str, why: str, per_step: int = 1, **keys: Any) -> None:
    """One micro-batch of one rank: no rank updates, the copies stay equal, row and event say so."""
    settings = {"steps": 4, "global_batch_size": BATCH, "micro_batch_size": MICRO // per_step}
    stability = {"spike": {"window": 2, "deviations": 200.0}}
    train = settings | {"check_replicas_every_steps": 1}
    with poisoned(kind, 3 * per_step):
        state = trained(folder / "run", train=train, stability=stability, **keys)
    rows = read(folder / "run" / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [False, False, True, False]
    assert rows[2].get("nonfinite", {}) == (
        {"loss": "nan", "perplexity": "nan"} if kind == "loss" else {}
    )
    assert state.skipped_steps == 1
    [event] = read(folder / "run" / "events.jsonl")
    assert event.pop("time")
    assert event.pop("why").startswith(why)
    assert event == {"event": "skip", "step": 3, "samples": [8, 12]}


def stops(folder: Path) -> None:
    """By what was asked for, by a spike, and for want of a way back; the events tell."""
    stop, half = {"nonfinite": "stop"}, {"fp16": {"enabled": True, "initial_scale_power": 4}}
    with poisoned("gradient", 2):
        said = said_by_all(lambda: trained(folder / "stop", stage=0, stability=stop))
    assert re.match(
        r"gradients are not finite: the gradient of \S+ \(rank \d\) is not finite", said
    )
    with poisoned("loss", 2):
        run = {"stability": stop, "precision": "fp16", "deepspeed": half}
        said = said_by_all(lambda: trained(folder / "half", **run))
    assert re.match(r"the loss is nan: the gradient of \S+ \(rank \d\) is not finite", said)
    spike = {"spike": {"window": 3, "deviations": 200.0, "then": "stop"}}
    with poisoned("spike", 5):
        said = said_by_all(lambda: trained(folder / "spike", stability=spike))
    assert "deviations above the last 3" in said
    back = {"nonfinite": "rollback", "max_rollbacks": 1}
    with poisoned("loss", 2):
        said = said_by_all(lambda: trained(folder / "early", stability=back))
    assert said == "the loss is nan, and there is no checkpoint to go back to"
    with poisoned("loss", 3, 4):
        said = said_by_all(lambda: trained(folder / "often", stability=back))
    assert said == "the loss is nan, after 1 rollbacks"
    found = [event["event"] for event in read(folder / "often" / "events.jsonl")]
    assert found == ["rollback"]
    for name in ("stop", "half", "spike"):
        assert [event["event"] for event in read(folder / name / "events.jsonl")] == ["stop"]


def rolls_back(folder: Path, *, kind: str, **keys: Any) -> None:
    """Back at step 2 from step 4, samples 8 to 15 left out, in the engine that was at work.

    The same rows come from a fresh engine that resumes from what the rollback committed, and not
    from one whose position in the data is the checkpoint's.
    """
    spike = {"window": 2, "deviations": 200.0, "then": "rollback"}
    stability = {"nonfinite": "rollback", "spike": spike}
    with poisoned(kind, 4):
        state = trained(folder / "run", stability=stability, **keys)
    rows = read(folder / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert not any(row["skipped"] for row in rows)
    assert (state.samples_seen, rows[-1]["tokens_seen"]) == (8 * BATCH, 6 * BATCH * (TOKENS - 1))
    [made] = state.rollbacks
    assert (made["from_step"], made["to_step"], made["samples"]) == (4, 2, [8, 16])
    [event] = read(folder / "run" / "events.jsonl")
    assert (event["event"], event["step"], event["samples"]) == ("rollback", 4, [8, 16])

    sabotage = [("sabotaged", 8)] if kind == "loss" else []
    for name, position in (("resumed", 16), *sabotage):
        if world.rank() == 0:
            step = Path("checkpoints", "step-00000002")
            shutil.copytree(folder / "run" / step, folder / name / step)
            saved = json.loads((folder / name / step / "state.json").read_text())
            assert (saved["samples_seen"], saved["rollbacks"]) == (16, [made])
        torch.distributed.barrier()
        with pytest.MonkeyPatch.context() as patch:
            if name == "sabotaged":
                restore = TrainState.restore
                patch.setattr(
                    TrainState,
                    "restore",
                    lambda state, saved: restore(state, saved | {"samples_seen": position}),  # noqa: B023
                )
            trained(folder / name, stability=stability, **keys)
        again = without_times(read(folder / name / "metrics.jsonl"))
        assert (again == without_times(rows[2:])) is (name == "resumed")


def rolls_back_on_nvme(folder: Path) -> None:
    """Optimizer and weights are read from NVMe by the engine that has swapped them since."""
    folder.mkdir(parents=True, exist_ok=True)
    with swapping_little():
        rolls_back(folder, kind="gradient", **on_nvme(folder, 3_000))


class Interrupted(Exception):
    pass


def interrupted(folder: Path, after: int, **sections: Any) -> None:
    """A run that breaks in the step after `after`: nothing is saved on the way out."""
    with pytest.MonkeyPatch.context() as patch:
        whole, calls = steps._run, iter(range(1, 100))

        def broken(*words: Any) -> Any:
            if next(calls) > after:
                raise Interrupted
            return whole(*words)

        patch.setattr(steps, "_run", broken)
        with pytest.raises(Interrupted):
            trained(folder, **sections)


WHOLE: dict[str, Any] = {
    "optimizer": {"lr": 1e-3, "warmup_steps": 3},
    "stability": {"spike": {"window": 4}},
}


@contextmanager
def steps_on_the_disk() -> Iterator[list[tuple[str, int]]]:
    """Of each checkpoint, as it is committed, the last step whose row had been synced."""
    real_fsync, real_rename = os.fsync, disk.rename
    found: list[tuple[str, int]] = []
    synced: dict[str, int] = {}

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name == "metrics.jsonl":
            synced[path.name] = json.loads(path.read_text().splitlines()[-1])["step"]
        elif (path / "metrics.jsonl").exists():
            synced["named"] = synced.get("metrics.jsonl", 0)

    def rename(source: Path, target: Path) -> None:
        found.append((target.name, synced.get("named", 0)))
        real_rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(disk, "rename", rename)
        yield found


def a_resumed_run_has_the_same_metrics(folder: Path) -> None:
    """Cut to the checkpoint and made again, bit for bit: what one run to the end has.

    Also after a power loss: no checkpoint is committed before the rows that lead up to it.
    """
    with steps_on_the_disk() as found:
        trained(folder / "whole", **WHOLE)
    names = [f"step-{step:08d}" for step in (2, 4, 6)]
    expected_rows = zip(names, (2, 4, 6), strict=True) if world.rank() == 0 else ()
    assert found == [*expected_rows]
    expected = without_times(read(folder / "whole" / "metrics.jsonl"))
    interrupted(folder / "stopped", 5, **WHOLE)
    assert [row["step"] for row in read(folder / "stopped" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    state = trained(folder / "stopped", **WHOLE)
    assert without_times(read(folder / "stopped" / "metrics.jsonl")) == expected
    assert len(state.losses.losses) == 4


def a_raised_end_leaves_no_trace(folder: Path) -> None:
    """3 steps, and then 5, have the rows of 5 at once: no validation where there is none then."""
    prefix = shard(folder)
    keys: dict[str, Any] = {
        "data": {"train": prefix, "validation": prefix, "sequence_length": TOKENS},
        "evaluation": {"max_batches": 2},
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
    }
    trained(folder / "whole", 5, **keys)
    trained(folder / "raised", 3, **keys)
    assert "validation_loss" in read(folder / "raised" / "metrics.jsonl")[-1]
    trained(folder / "raised", 5, **keys)
    whole, raised = (without_times(read(folder / n / "metrics.jsonl")) for n in ("whole", "raised"))
    assert raised == whole
    assert [row["step"] for row in raised if "validation_loss" in row] == [5]


def stopped_on_one_rank(folder: Path) -> None:
    shared = _shared(folder)
    trained(shared / "whole", **WHOLE)
    interrupted(shared / "stopped", 5, **WHOLE)


def resumed_on_two_ranks(folder: Path) -> None:
    """The same steps, tokens and rates, and losses within rounding (fp32)."""
    shared = _shared(folder)
    before = read(shared / "stopped" / "metrics.jsonl")
    trained(shared / "stopped", **WHOLE)
    expected, found = (read(shared / name / "metrics.jsonl") for name in ("whole", "stopped"))
    assert found[:4] == before[:4]
    for key in ("step", "tokens_seen", "lr", "skipped_steps"):
        assert [row[key] for row in found] == [row[key] for row in expected], key
    for key in ("loss", "grad_norm"):
        values = [row[key] for row in expected]
        assert [row[key] for row in found] == pytest.approx(values, rel=1e-5), key


def _shared(folder: Path) -> Path:
    """One folder for the launches of both worlds, that of one rank first."""
    return folder.parents[1] / "saved" / "stability"


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    alone = (2,)
    fp32_sums = {"precision": "bf16", "accumulation": 2}
    unchecked = {"deepspeed": {"bf16": {"enabled": True, "check_grad_overflow": False}}}
    scaled = {"deepspeed": {"fp16": {"enabled": True, "initial_scale_power": 4}}}
    by_value = {"lr": 1e-3, "clip_value": 0.01, "schedule": "constant"}
    clipped = {"optimizer": by_value, "deepspeed": {"gradient_clipping": 0.0}}
    refused: dict[str, dict[str, Any]] = {
        "0": {"stage": 0},
        "1-fp32-sums": {"stage": 1, **fp32_sums},
        "2-unchecked": {"stage": 2, "precision": "bf16", "offload": "optimizer", **unchecked},
        "2-fp16": {"stage": 2, "precision": "fp16", **scaled},
        "3-clipped": {"stage": 3, "precision": "bf16", **clipped},
    }
    found: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {
        f"refused-{name}": (alone, partial(a_refused_update_leaves_no_trace, **keys))
        for name, keys in refused.items()
    }
    host = {"stage": 2, "precision": "bf16", "offload": "optimizer"}
    behind = {"every_steps": 2, "export": False, "background": True}
    back: dict[str, dict[str, Any]] = {
        "2-loss": {**host, "checkpoint": behind},
        "3-spike": {"stage": 3, "precision": "bf16", "offload": "all"},
        "1-gradient": {"stage": 1, "precision": "bf16"},
    }
    for name, keys in back.items():
        cell = partial(rolls_back, kind=name.partition("-")[2], **keys)
        found[f"rolls_back-{name}"] = (alone, cell)
    found["rolls_back-3-nvme"] = (alone, rolls_back_on_nvme)
    of_gradients = partial(skips, why="gradients are not finite")
    accumulated = {"stage": 3, "precision": "bf16", "per_step": 2}
    found["skips-loss"] = (alone, partial(skips, kind="loss", why="the loss is nan"))
    found["skips-gradient"] = (alone, partial(of_gradients, kind="gradient", **accumulated))
    found["skips-spike"] = (alone, partial(skips, kind="spike", why="the loss ", per_step=2))
    found["stops"] = (alone, stops)
    found["continuity"] = (alone, a_resumed_run_has_the_same_metrics)
    found["raised"] = (alone, a_raised_end_leaves_no_trace)
    found["worlds-saved"] = ((1,), stopped_on_one_rank)
    found["worlds-taken_up"] = (alone, resumed_on_two_ranks)
    return found


CELLS = _cells()
