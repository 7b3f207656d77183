"""A saved run goes on as if it had not stopped; what fails on one rank is said on all."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds_llama.checkpoint import checksums, offline
from ds_llama.checkpoint import resume as resuming
from ds_llama.checkpoint.choose import choose
from ds_llama.checkpoint.restore import restore
from ds_llama.checkpoint.resume import resume
from ds_llama.checkpoint.save import save
from ds_llama.commit import listing, names
from ds_llama.commit.verify import verify
from ds_llama.errors import CheckpointError
from ds_llama.trainer.build import construct
from ds_llama.weights.export import export_model
from ds_llama.weights.folder import ModelFolder
from ds_llama.zero import world
from ds_llama.zero.pieces import pieces
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.campaigns import resume_anywhere
from tests.distributed.runs import global_batch, make_run, split

MICRO = 2
# 131 is prime: no world size divides the embedding's rows. With an odd hidden size as well the last
# slices are padded at stage 3.
MODEL = {"vocab_size": 131, "head_dim": 16, "num_hidden_layers": 1}


def engine_for(
    folder: Path,
    *,
    seed: int = 0,
    tied: bool = False,
    frozen: tuple[str, ...] = (),
    hidden_size: int = 64,
    **keys: Any,
) -> Any:
    train = {"steps": 4, "seed": seed, "micro_batch_size": MICRO}
    train["global_batch_size"] = MICRO * world.world_size()
    keys["model"] = MODEL | {"tie_word_embeddings": tied, "hidden_size": hidden_size}
    run = make_run(folder, world=world.world_size(), micro_batch_size=MICRO, train=train, **keys)
    model = construct(run)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return register(model, run)


def train(engine: Any, first: int, last: int) -> list[tuple[float, float | None]]:
    found = []
    for step in range(first, last + 1):
        batch = global_batch(step, MICRO * world.world_size())
        window = split(batch, MICRO, world.rank(), world.world_size())
        result = take_step(engine, window)
        found.append((result.loss, result.grad_norm))
    return found


def commit(engine: Any, folder: Path, step: int, **keys: Any) -> Path:
    state = {"step": step, "tokens_seen": 10 * step, "samples_seen": step}
    return save(engine, folder / "checkpoints", step, state, engine.ds_llama.resolved, **keys)


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def raised(action: Callable[[], Any]) -> CheckpointError:
    """The CheckpointError that `action` raises; the other ranks have to have met it as well."""
    with pytest.raises(CheckpointError) as caught:
        action()
    return caught.value


def goes_on(folder: Path, **keys: Any) -> None:
    """Losses, norms, weights, masters, moments and generators go on bit for bit after a resume."""
    engine = engine_for(folder, **keys)
    train(engine, 1, 2)
    random.seed(world.rank()), np.random.seed(world.rank()), torch.manual_seed(world.rank())
    draw()
    step = commit(engine, folder, 2)
    kept = checksums.compute(engine)
    export_model(engine, engine.ds_llama.resolved.model, folder / "live")
    assert checksums.compute(engine)["parameters"] == kept["parameters"]
    expected, drawn = train(engine, 3, 4), draw()
    after = checksums.compute(engine)
    assert after["parameters"] != kept["parameters"]

    fresh = engine_for(folder, seed=1, **keys)
    assert checksums.compute(fresh)["parameters"] != kept["parameters"]
    state = resume(fresh, step, fresh.ds_llama.resolved)
    assert state == {"step": 2, "tokens_seen": 20, "samples_seen": 2}
    assert checksums.compute(fresh) == kept
    assert (train(fresh, 3, 4), draw()) == (expected, drawn)
    assert checksums.compute(fresh) == after
    if world.rank() == 0:
        assert verify(step) == []
        assert sorted(p.name for p in step.parent.iterdir()) == [".run-id", "latest", step.name]
        offline.export_step(step, folder / "offline")
        require_equal_folders(folder / "offline", folder / "live")


def require_equal_folders(one: Path, two: Path) -> None:
    with ModelFolder(one) as first, ModelFolder(two) as second:
        assert first.names == second.names
        for name in first.names:
            assert first.spec(name) == second.spec(name)
            assert torch.equal(first.read(name), second.read(name)), name


@contextmanager
def full_disk_on(rank: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank() == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def one_rank_that_fails_fails_all(folder: Path, stage: int) -> None:
    """A full disk on the last rank: an error on every rank, nothing sealed, the next save works."""
    engine = engine_for(folder, stage=stage)
    train(engine, 1, 1)
    first = commit(engine, folder, 1)
    last = world.world_size() - 1 if stage else 0  # at stage 0 rank 0 writes everything
    with full_disk_on(last):
        error = raised(lambda: commit(engine, folder, 2))
    assert f"saving step-00000002 failed on rank {last}: File too large" in error.what, error
    assert "nothing that was committed before is harmed" in error.what
    file = Path(error.where)
    assert file.parent == names.staging(first.parent, "step-00000002"), error
    assert file.name.endswith("_states.pt"), error
    torch.distributed.barrier()
    assert sorted(p.name for p in first.parent.iterdir()) == [".run-id", "latest", first.name]
    assert verify(first) == []
    torch.distributed.barrier()
    train(engine, 2, 3)
    assert verify(commit(engine, folder, 3, keep_last=1)) == []
    torch.distributed.barrier()
    assert [c.step for c in listing.checkpoints(first.parent)] == [3]


def damage_is_named_before_anything_is_loaded(folder: Path) -> None:
    """A bit of the last rank's shard: `required` stops, `auto` takes the checkpoint before it."""
    engine = engine_for(folder, stage=3)
    train(engine, 1, 1)
    older, step = commit(engine, folder, 1), commit(engine, folder, 2)
    root, before = step.parent, checksums.compute(engine)
    assert choose(root, "auto") == choose(root, "required") == step
    shard = step / f"zero_pp_rank_{world.world_size() - 1}_mp_rank_00_optim_states.pt"
    if world.rank() == 0:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    torch.distributed.barrier()
    expected = f"{shard.name} (written by rank {world.world_size() - 1}) has other content"
    for action in (
        lambda: resume(engine, step, engine.ds_llama.resolved),
        lambda: choose(root, "required"),
    ):
        error = raised(action)
        assert expected in error.what, error
    assert checksums.compute(engine) == before
    assert choose(root, "auto") == older
    torch.distributed.barrier()
    assert [c.name for c in listing.checkpoints(root)] == [older.name]
    assert (root / f"damaged-{step.name}" / shard.name).exists()


def what_is_loaded_wrong_is_noticed(folder: Path, stage: int) -> None:
    """Sabotage: one element of one master, moment or weight of one rank changed after loading."""
    engine = engine_for(folder, stage=stage, precision="fp32" if stage == 0 else "bf16")
    train(engine, 1, 1)
    step = commit(engine, folder, 1)
    last = world.world_size() - 1
    for kind in ("weight", "exp_avg", *(["master"] if stage else [])):
        fresh = engine_for(folder, seed=1, stage=stage, precision="fp32" if stage == 0 else "bf16")

        def load_wrong(engine: Any, reader: Any, kind: str = kind) -> None:
            restore(engine, reader)
            if world.rank() == last:
                piece = next(p for p in pieces(engine) if p.kind == kind and p.flat.numel() > 3)
                piece.flat[3] += 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resuming, "restore", load_wrong)
            error = raised(lambda fresh=fresh: resume(fresh, step, fresh.ds_llama.resolved))
        assert f"({kind})" in error.what, error
        assert f"on rank {last}" in error.what, error


LAYOUTS: dict[str, dict[str, Any]] = {
    "1": {"stage": 1},
    "2+optimizer": {"stage": 2, "offload": "optimizer"},
    "3": {"stage": 3},
    "3+optimizer": {"stage": 3, "offload": "optimizer"},
    "3+all": {"stage": 3, "offload": "all"},
}


def another_layout_goes_on(folder: Path) -> None:
    """From every stage and offload to every other: the same bytes, the same losses."""
    for source, keys in LAYOUTS.items():
        engine = engine_for(folder, precision="bf16", **keys)
        train(engine, 1, 2)
        step = commit(engine, folder / source, 2)
        expected = train(engine, 3, 4)
        for target, others in LAYOUTS.items():
            fresh = engine_for(folder, seed=1, precision="bf16", **others)
            resume(fresh, step, fresh.ds_llama.resolved)
            found = train(fresh, 3, 4)
            assert found[0][0] == pytest.approx(expected[0][0], rel=1e-5), (source, target)
            np.testing.assert_allclose(found, expected, rtol=1e-3, err_msg=f"{source} {target}")


def muon_goes_on_in_another_layout_of_stage_3(folder: Path) -> None:
    """Its momentum is divided as the moments are there; at stages 1 and 2 it is not."""
    section = {"optimizer": {"type": "Muon"}, "deepspeed": {"gradient_clipping": 0.0}}
    engine = engine_for(folder, stage=3, precision="bf16", **section)
    train(engine, 1, 2)
    step = commit(engine, folder, 2)
    expected = train(engine, 3, 4)
    fresh = engine_for(folder, seed=1, precision="bf16", **LAYOUTS["3+optimizer"], **section)
    resume(fresh, step, fresh.ds_llama.resolved)
    losses = [[loss for loss, _ in found] for found in (train(fresh, 3, 4), expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    other = engine_for(folder, stage=2, precision="bf16", **section)
    error = raised(lambda: resume(other, step, other.ds_llama.resolved))
    assert "layout, which Muon's momentum goes by" in error.what, error


def saved_for_other_worlds(folder: Path) -> None:
    resume_anywhere.saved(_shared(folder), "bf16", world.world_size(), resume_anywhere.SHORT)


def other_worlds_are_taken_up(folder: Path) -> None:
    """The short form of `tests.campaigns.resume_anywhere`: what this and smaller worlds saved."""
    short, size = resume_anywhere.SHORT, world.world_size()
    rows = list(resume_anywhere.take_up(_shared(folder), "bf16", short, size))
    worlds = {row["from"][0] for row in rows}
    assert worlds >= {1}, "run the cells of world 1 in the same folder before"
    wrong = [text for row in rows if (text := resume_anywhere.failed(row)) is not None]
    assert not wrong, resume_anywhere.table(rows)


def _shared(folder: Path) -> Path:
    """One folder for the launches of all worlds."""
    shared = folder.parents[1] / "saved"
    shared.mkdir(exist_ok=True)
    return shared


def another_network_is_refused(folder: Path) -> None:
    engine = engine_for(folder, stage=2, precision="bf16")
    train(engine, 1, 1)
    step = commit(engine, folder, 1)
    other = engine_for(folder, stage=2)
    error = raised(lambda: resume(other, step, other.ds_llama.resolved))
    assert error.what == "the checkpoint's dtype is bfloat16, this run's float32"
    assert "start from its weights" in error.remedy
    frozen = ("model.norm.weight", "lm_head.weight")
    other = engine_for(folder, stage=2, precision="bf16", frozen=frozen)
    error = raised(lambda: resume(other, step, other.ds_llama.resolved))
    assert error.what == (
        "this run freezes model.norm.weight and 1 more, which the checkpoint's trained"
    )


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    both, alone = (1, 2), (2,)
    found: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {}
    for stage, precision, offload, tied, worlds in (
        (0, "fp32", "none", False, both),
        (1, "bf16", "none", False, alone),
        (2, "bf16", "none", True, both),
        (2, "bf16", "optimizer", False, alone),
        (3, "bf16", "none", True, both),
        (3, "bf16", "none", False, (4,)),
        (3, "bf16", "all", False, alone),
        (3, "fp32", "none", False, alone),
    ):
        cell = partial(goes_on, stage=stage, precision=precision, offload=offload, tied=tied)
        name = f"goes_on-{stage}-{precision}-{offload}-{'tied' if tied else 'untied'}"
        found[name] = (worlds, cell)
    accumulated = {"deepspeed": {"data_types": {"grad_accum_dtype": "fp32"}}}
    for stage in (1, 2, 3):  # stage 1 is another optimizer of DeepSpeed's then
        cell = partial(goes_on, stage=stage, precision="bf16", **accumulated)
        found[f"goes_on-{stage}-bf16-fp32-gradients"] = (alone, cell)
    rows = [{"parameters": ["*norm*"], "lr": 0.2}, {"parameters": ["*"], "gradient_clipping": 0.1}]
    own: tuple[tuple[int, dict[str, Any]], ...] = (
        (2, {"type": "SGD", "groups": rows}),
        (3, {"type": "Lion", "groups": rows}),
        (1, {"type": "Adagrad"}),
        (1, {"type": "Muon"}),
        (2, {"type": "Muon"}),
        (3, {"type": "Muon"}),
    )
    for stage, section in own:
        unclipped = {"optimizer": section, "deepspeed": {"gradient_clipping": 0.0}}
        cell = partial(goes_on, stage=stage, precision="bf16", **unclipped)
        found[f"goes_on-{stage}-{section['type']}"] = (alone, cell)
    for stage in (0, 2, 3):
        found[f"one_rank_fails-{stage}"] = (
            alone,
            partial(one_rank_that_fails_fails_all, stage=stage),
        )
        found[f"loaded_wrong-{stage}"] = (
            alone,
            partial(what_is_loaded_wrong_is_noticed, stage=stage),
        )
    found["damage"] = (alone, damage_is_named_before_anything_is_loaded)
    found["another_layout"] = (alone, another_layout_goes_on)
    found["another_layout-Muon"] = (alone, muon_goes_on_in_another_layout_of_stage_3)
    found["worlds-saved"] = ((1, 2), saved_for_other_worlds)
    found["worlds-taken_up"] = ((2, 4), other_worlds_are_taken_up)
    found["another_network"] = ((1,), another_network_is_refused)
    return found


CELLS = _cells()
