"""Learning rates at the places that matter, and against torch's own schedulers."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.config.optimizer import AdamW
from ds_llama.zero import schedule


def section(**values: object) -> AdamW:
    return AdamW(**{"lr": 1.0, "warmup_steps": 10, "min_lr_ratio": 0.1, **values})


@pytest.mark.parametrize("name", sorted(schedule.SHAPES))
def test_warm_up_is_linear_and_reaches_the_peak(name: str) -> None:
    lr = schedule.build(section(schedule=name), 100)
    assert [lr(step) for step in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert lr(10) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "last"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0), ("wsd", 0.1)]
)
def test_last_update_is_made_at_the_minimum(name: str, last: float) -> None:
    assert schedule.build(section(schedule=name), 100)(99) == pytest.approx(last)


def test_wsd_is_flat_until_its_decay() -> None:
    lr = schedule.build(section(schedule="wsd", decay_steps=20), 100)
    assert {lr(step) for step in range(10, 79)} == {1.0}
    assert lr(89) == pytest.approx(0.1 + 0.9 * 0.5)


def test_cosine_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=99, eta_min=0.1)
    lr = schedule.build(section(schedule="cosine", warmup_steps=0), 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(100):
            assert lr(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
            oracle.step()


LOSSES = st.lists(
    st.one_of(st.floats(0, 20), st.sampled_from([1.0, 0.9999, 0.9998, math.nan, math.inf])),
    max_size=60,
)


@given(
    losses=LOSSES,
    factor=st.floats(0.05, 0.95),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
    cooldown=st.integers(0, 3),
    floor=st.floats(0, 1),
    cut=st.integers(0, 60),
)
def test_plateau_equals_torch(
    losses: list[float],
    factor: float,
    patience: int,
    threshold: float,
    cooldown: int,
    floor: float,
    cut: int,
) -> None:
    """The same rates for the same losses, and also when it is saved and restored on the way."""
    settings = {
        "factor": factor,
        "patience": patience,
        "threshold": threshold,
        "cooldown": cooldown,
    }
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=floor, **settings)
    wanted = section(schedule="plateau", plateau=settings, min_lr_ratio=floor, warmup_steps=0)
    plateau = schedule.Plateau()
    lr = schedule.build(wanted, 100, plateau)
    for number, loss in enumerate(losses):
        if number == cut:
            plateau = schedule.Plateau(**json.loads(json.dumps(asdict(plateau), allow_nan=False)))
            lr = schedule.build(wanted, 100, plateau)
        oracle.step(loss)
        plateau.see(loss, wanted)
        assert lr(number) == optimizer.param_groups[0]["lr"]


def test_plateau_after_the_warm_up_and_at_the_peak() -> None:
    plateau = schedule.Plateau()
    wanted = section(schedule="plateau", lr=3e-4, plateau={"patience": 0}, min_lr_ratio=0.3)
    lr = schedule.build(wanted, 100, plateau)
    assert [lr(step) for step in range(10)] == pytest.approx([3e-5 * (s + 1) for s in range(10)])
    rates = []
    for loss in (2.0, 2.0, 1.0, 1.0, 1.0):
        plateau.see(loss, wanted)
        rates.append(lr(50))
    assert rates == pytest.approx([3e-4, 1.5e-4, 1.5e-4, 0.9e-4, 0.9e-4])


@given(
    name=st.sampled_from(sorted(schedule.SHAPES)),
    total=st.integers(1, 500),
    warmup=st.integers(0, 600),
    decay=st.integers(1, 600),
    step=st.integers(0, 1000),
)
def test_never_negative_nor_above_the_peak(
    name: str, total: int, warmup: int, decay: int, step: int
) -> None:
    lr = schedule.build(section(schedule=name, warmup_steps=warmup, decay_steps=decay), total)
    assert math.isfinite(lr(step))
    assert 0.0 <= lr(step) <= 1.0
