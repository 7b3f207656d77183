"""The average of the fp32 weights is torch's own `AveragedModel`, wherever it is kept.

Two oracles. Over the engine's own masters, gathered after each update, the average has to be
torch's bit for bit: the same elementwise kernel meets the same numbers, however they are divided.
Over the masters of the hand-written loop it has to be within what the selftest allows the masters
themselves, of which it is a mean. The twin that must fail is torch's average at another decay.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ds_llama.checkpoint import checksums, offline
from ds_llama.checkpoint.resume import resume
from ds_llama.errors import CheckpointError
from ds_llama.evals.perplexity import evaluate
from ds_llama.selftest.cells import LIMITS
from ds_llama.selftest.tiny import OPTIMIZER
from ds_llama.trainer.build import construct
from ds_llama.weights.export import export_model
from ds_llama.weights.folder import ModelFolder
from ds_llama.zero import ema, world
from ds_llama.zero import engine as engines
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.cells.checkpoint import commit, require_equal_folders
from tests.distributed.reference import Reference
from tests.distributed.runs import global_batch, make_run, split

STEPS, MICRO, DECAY = 4, 2, 0.7
Masters = dict[str, torch.Tensor]


class TorchAverage:
    """`AveragedModel` over tensors that are handed to it after each update."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.model: AveragedModel | None = None

    def update(self, masters: Masters) -> None:
        module = nn.ParameterList([nn.Parameter(master.clone()) for master in masters.values()])
        if self.model is None:
            function = get_ema_multi_avg_fn(self.decay)
            self.model = AveragedModel(module, multi_avg_fn=function)
        self.model.update_parameters(module)

    def gap(self, others: Masters) -> float:
        pairs = zip(self.model.module, others.values(), strict=True)
        return max(float((ours.detach() - other).abs().max()) for ours, other in pairs)


def engine_for(folder: Path, **keys: Any) -> Any:
    keys.setdefault("ema", {"decay": DECAY})
    keys.setdefault("optimizer", OPTIMIZER)
    run = make_run(folder, world=world.world_size(), micro_batch_size=MICRO, **keys)
    return register(construct(run), run)


def masters_of(engine: Any) -> Masters:
    whole = engine.zero_optimization_stage() == 0
    return {
        name: (parameter if whole else safe_get_full_fp32_param(parameter)).detach().clone()
        for name, parameter in engine.module.named_parameters()
    }


def averages_of(engine: Any) -> Masters:
    with ema.averaged(engine):
        return masters_of(engine)


def window(step: int, accumulation: int = 1) -> list[dict[str, torch.Tensor]]:
    batch = global_batch(step, MICRO * accumulation * world.world_size())
    return split(batch, MICRO, world.rank(), world.world_size())


def equals_torch(folder: Path, *, accumulation: int = 1, decay: float = DECAY, **keys: Any) -> None:
    """`decay` is torch's: with another than the engine's, nothing may agree."""
    size, precision = world.world_size(), keys["precision"]
    engine = engine_for(folder, accumulation=accumulation, **keys)
    run = engine.ds_llama.resolved.run
    reference = Reference(construct(run, how="plain"), eps=OPTIMIZER["eps"])
    own, plain = TorchAverage(decay), TorchAverage(decay)
    for step in range(STEPS):
        engines.set_lr(engine, 1e-3)
        take_step(engine, window(step, accumulation))
        own.update(masters_of(engine))
        if precision == "fp32":
            batch = global_batch(step, MICRO * accumulation * size)
            reference.step([m for r in range(size) for m in split(batch, MICRO, r, size)], size)
            plain.update(reference.masters)
    held = averages_of(engine)
    if keys["stage"] > 0:
        require_sharded(engine)
    same = own.gap(held) == 0.0
    close = precision != "fp32" or plain.gap(held) <= LIMITS["fp32"].parameters
    if decay == DECAY:
        assert same, own.gap(held)
        assert close, plain.gap(held)
        assert TorchAverage.gap(own, masters_of(engine)) > 1e-4  # it is not the masters
    else:
        assert not same
        assert precision != "fp32" or not close


def require_sharded(engine: Any) -> None:
    """4 bytes a parameter on all ranks together, but for the padding of partitions."""
    states = engine.optimizer.optimizer.state.values()
    assert {state[ema.KEY].dtype for state in states} == {torch.float32}
    held = torch.tensor(sum(state[ema.KEY].numel() for state in states))
    torch.distributed.all_reduce(held)
    parameters = engine.ds_llama.resolved.model.num_parameters
    assert parameters <= int(held) < parameters + 1000


def the_step_asks_no_other_rank(folder: Path) -> None:
    """One rank averages alone: a collective in it would never end."""
    engine = engine_for(folder, stage=2, precision="bf16")
    for step in range(2):
        take_step(engine, window(step))
    before = averages_of(engine)
    base = engine.optimizer.optimizer
    if world.rank() == 1:
        for hook in base._optimizer_step_post_hooks.values():
            hook(base, (), {})
    torch.distributed.barrier()
    assert any(not torch.equal(t, before[name]) for name, t in averages_of(engine).items())


def weights_come_back(folder: Path, **keys: Any) -> None:
    """Within, forward uses the averages; afterwards all is as before, also after an error."""
    engine = engine_for(folder, **keys)
    windows = [row.numpy() for row in global_batch(9, 8)["input_ids"]]
    for step in range(2):
        take_step(engine, window(step))
    before, plain = checksums.compute(engine), evaluate(engine, windows, micro_batch_size=2)
    averages = averages_of(engine)
    with ema.averaged(engine):
        inside = evaluate(engine, windows, micro_batch_size=2)
        lent = checksums.compute(engine)["parameters"]
    assert inside.loss != plain.loss
    assert inside.loss == pytest.approx(loss_with(engine, averages, windows), abs=1e-6)
    assert evaluate(engine, windows, micro_batch_size=2) == plain
    checksums.check(engine, before, "after lending")  # gathered copies and all
    kinds = before["parameters"]["model.embed_tokens.weight"]
    swapped = lent["model.embed_tokens.weight"]
    master = "master" if "master" in kinds else "weight"
    assert (swapped[master], swapped[ema.KEY]) == (kinds[ema.KEY], kinds[master])
    with pytest.raises(ValueError, match="of the user"), ema.averaged(engine):
        raise ValueError("of the user")
    checksums.check(engine, before, "after an error")
    take_step(engine, window(2))


def one_rank_that_fails_waits_for_nobody(folder: Path) -> None:
    """Its error has to come out, so that the launcher ends the others: no collective on the way."""
    if world.rank() == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ema, "_PATIENCE_S", 0.2)
            assert not ema._on_all_ranks("one of two")
    assert ema._on_all_ranks("both")
    torch.distributed.barrier()


def loss_with(engine: Any, weights: Masters, windows: Any) -> float:
    """What a plain model with these weights, rounded as the training's are, makes of it."""
    resolved = engine.ds_llama.resolved
    model = construct(resolved.run, how="plain")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return evaluate(model, windows, micro_batch_size=2).loss


def skipped_updates_leave_it(folder: Path, *, stage: int, precision: str) -> None:
    """A gradient that is not finite: fp16's overflow lowers the scale, the others just skip."""
    engine = engine_for(folder, stage=stage, precision=precision)
    for step in range(2):
        take_step(engine, window(step))
    before, held = averages_of(engine), masters_of(engine)
    engine.backward(engine(**window(2)[0]).loss * float("nan"))
    engine.step()
    assert not engine.was_step_applied()
    require_equal(averages_of(engine), before)
    require_equal(masters_of(engine), held)
    take_step(engine, window(3))
    assert engine.was_step_applied()
    with pytest.raises(AssertionError):
        require_equal(averages_of(engine), before)


def under_the_jsons_own_optimizer(folder: Path) -> None:
    """Whoever made the optimizer, and whoever's loop steps it."""
    adam = {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}}
    engine = engine_for(
        folder, stage=2, precision="bf16", optimizer=None, deepspeed={"optimizer": adam}
    )
    own = TorchAverage(DECAY)
    for step in range(3):
        for batch in window(step):
            engine.backward(engine(**batch).loss)
            engine.step()
        own.update(masters_of(engine))
    assert own.gap(averages_of(engine)) == 0.0


def goes_on(folder: Path, **keys: Any) -> None:
    """The average goes on bit for bit after a resume, and is read offline as it is live."""
    keys |= {"model": {"vocab_size": 131, "num_hidden_layers": 1}}  # 131: slices with padding
    engine = engine_for(folder, **keys)
    for step in range(2):
        take_step(engine, window(step))
    saved = commit(engine, folder, 2)
    kept = averages_of(engine)
    with ema.averaged(engine):
        export_model(engine, engine.ds_llama.resolved.model, folder / "live")
    for step in range(2, 4):
        take_step(engine, window(step))
    expected = averages_of(engine)
    fresh = engine_for(folder, **keys)
    resume(fresh, saved, fresh.ds_llama.resolved)
    require_equal(averages_of(fresh), kept)
    for step in range(2, 4):
        take_step(fresh, window(step))
    require_equal(averages_of(fresh), expected)
    if world.rank() == 0:
        offline.export_step(saved, folder / "offline", ema=True)
        require_equal_folders(folder / "offline", folder / "live")
        offline.export_step(saved, folder / "fp32", ema=True, dtype=torch.float32)
        with ModelFolder(folder / "fp32") as read:
            for name, average in kept.items():
                assert torch.equal(read.read(name), average.view(-1)), name
    torch.distributed.barrier()


def require_equal(found: Masters, expected: Masters) -> None:
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def switched_at_a_resume(folder: Path, **keys: Any) -> None:
    """Off: the average is dropped, and later checkpoints have none. On: it starts anew."""
    engine = engine_for(folder, **keys)
    take_step(engine, window(0))
    saved = commit(engine, folder, 1)
    without = engine_for(folder, ema=None, **keys)
    resume(without, saved, without.ds_llama.resolved)
    take_step(without, window(1))
    sums = checksums.compute(without)["parameters"]["model.norm.weight"]
    assert ema.KEY not in sums
    assert "exp_avg" in sums
    later = commit(without, folder, 2)
    if world.rank() == 0:
        with pytest.raises(CheckpointError, match="holds no averaged weights") as caught:
            offline.export_step(later, folder / "out", ema=True)
        assert caught.value.where == str(later)
        assert "leave --ema out" in caught.value.remedy
    torch.distributed.barrier()
    again = engine_for(folder, **keys)
    resume(again, later, again.ds_llama.resolved)
    require_equal(averages_of(again), masters_of(again))
    take_step(again, window(2))
    require_equal(averages_of(again), masters_of(again))  # a copy, at the first update
    take_step(again, window(3))
    masters = masters_of(again)
    assert any(not torch.equal(average, masters[n]) for n, average in averages_of(again).items())


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    cells: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {}
    small = {"zero_optimization": {"stage": 3, "sub_group_size": 5000}}
    for stage, precision, offload, accumulation, worlds in (
        (0, "fp32", "none", 1, (1, 2)),
        (1, "fp32", "none", 1, (2,)),
        (2, "fp32", "none", 2, (1, 2)),
        (3, "fp32", "none", 1, (1, 2)),
        (1, "bf16", "none", 2, (2,)),
        (2, "bf16", "none", 1, (2,)),
        (2, "bf16", "optimizer", 1, (2,)),
        (3, "bf16", "none", 2, (2,)),
        (3, "bf16", "optimizer", 1, (2,)),
        (3, "bf16", "all", 1, (2,)),
    ):
        keys = {"stage": stage, "precision": precision, "offload": offload}
        name = f"{precision}-stage{stage}-{offload}-accumulation{accumulation}"
        cells[name] = (worlds, partial(equals_torch, accumulation=accumulation, **keys))
    for stage, precision, offload in (
        (0, "fp32", "none"),
        (2, "bf16", "none"),
        (2, "bf16", "optimizer"),
        (3, "fp32", "none"),
        (3, "bf16", "none"),
        (3, "bf16", "all"),
    ):
        keys = {"stage": stage, "precision": precision, "offload": offload}
        cells[f"lent-{precision}-stage{stage}-{offload}"] = (
            (2,),
            partial(weights_come_back, **keys),
        )
    for stage, precision in ((2, "fp32"), (2, "fp16"), (3, "bf16"), (3, "fp16")):
        cell = partial(skipped_updates_leave_it, stage=stage, precision=precision)
        cells[f"skipped-{precision}-stage{stage}"] = ((1,), cell)
    cells["no-collective"] = ((2,), the_step_asks_no_other_rank)
    cells["one-rank-fails"] = ((2,), one_rank_that_fails_waits_for_nobody)
    cells["json-optimizer"] = ((1,), under_the_jsons_own_optimizer)
    for kind in ("SGD", "Lion"):
        optimizer = {"type": kind, "lr": 1e-3, "schedule": "constant"}
        optimizer |= {"momentum": 0.0} if kind == "SGD" else {}
        cell = partial(goes_on, stage=2, precision="bf16", optimizer=optimizer)
        cells[f"goes_on-{kind}"] = ((1,), cell)
    groups = partial(equals_torch, stage=3, precision="bf16", deepspeed=small)
    cells["bf16-stage3-sub-groups"] = ((2,), groups)
    for stage, precision, offload, worlds in (
        (0, "fp32", "none", (2,)),
        (1, "bf16", "none", (1,)),
        (2, "bf16", "optimizer", (2,)),
        (3, "fp32", "none", (1,)),
        (3, "bf16", "none", (2,)),
    ):
        keys = {"stage": stage, "precision": precision, "offload": offload}
        cells[f"goes_on-{precision}-stage{stage}-{offload}"] = (worlds, partial(goes_on, **keys))
    for stage, precision in ((0, "fp32"), (2, "bf16"), (3, "bf16")):
        cell = partial(switched_at_a_resume, stage=stage, precision=precision)
        cells[f"switched-{precision}-stage{stage}"] = ((1,), cell)
    for stage, precision in ((2, "bf16"), (3, "fp32")):
        cell = partial(equals_torch, stage=stage, precision=precision, decay=0.71)
        cells[f"sabotaged-{precision}-stage{stage}"] = ((2,), cell)
    return cells


CELLS = _cells()
