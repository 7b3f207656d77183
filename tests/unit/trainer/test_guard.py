"""What becomes of an update: the guard over one rank, without an engine's arithmetic."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ds_llama.config.run import SpikeConfig, StabilityConfig
from ds_llama.errors import RunError
from ds_llama.trainer import guard as guards
from ds_llama.trainer.guard import Guard
from ds_llama.trainer.spikes import LossWindow
from ds_llama.trainer.state import TrainState
from ds_llama.zero.step import StepResult


class Network(torch.nn.Module):
    """Two weights, the second of which is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.good = torch.nn.Parameter(torch.zeros(2))
        self.spoilt = torch.nn.Parameter(torch.tensor([0.0, math.nan]))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)


class Judged:
    """A guard of one rank; `events` is what it noted."""

    def __init__(
        self, module: torch.nn.Module | None = None, *, dynamic: bool = False, **settings: Any
    ) -> None:
        self.engine = SimpleNamespace(
            module=module or torch.nn.Linear(1, 1),
            optimizer=None,
            zero_optimization_stage=lambda: 0,
            fp16_enabled=lambda: dynamic,
            dynamic_loss_scale=lambda: dynamic,
            ds_llama_before_update=[],
            _take_model_step=None,
        )
        self.state, self.events = TrainState(100, step=6), list[str]()
        self.guard = Guard(
            self.engine,
            self.state,
            StabilityConfig(**settings),
            "runs/x",
            lambda event, why: self.events.append(f"{event}: {why}"),
        )

    def step(
        self, loss: float = 1.0, *, overflow: bool = False, norm: float | None = None
    ) -> str | None:
        """One step; DeepSpeed skips its update at an overflow. Why to roll back, if so."""
        accepted = self.guard.accepts(loss, norm)
        for hook in self.engine.ds_llama_before_update:
            hook(self.engine)
        applied = accepted and not overflow
        return self.guard.settle(StepResult(loss, 1, applied, None, None, None))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops(loss: float) -> None:
    judged = Judged(nonfinite="stop")
    with pytest.raises(RunError, match=f"the loss is {loss}: every weight still is") as caught:
        judged.step(loss)
    assert caught.value.where == "step 7 of runs/x"
    assert judged.events == [f"stop: the loss is {loss}: every weight still is finite"]


def test_no_skip_mends_a_weight() -> None:
    with pytest.raises(RunError, match=r"nan: the weight of spoilt \(rank 0\) is not finite"):
        Judged(Network()).step(math.nan)


@pytest.mark.parametrize("how", [{"loss": math.nan}, {"overflow": True}, {"norm": math.inf}])
def test_so_many_skips_in_a_row_end_the_run(how: dict[str, Any]) -> None:
    judged = Judged()
    for step in (how, how, {}, how, how):
        assert judged.step(**step) is None
    why = "the loss is nan" if "loss" in how else guards.GRADIENTS
    assert judged.events == [f"skip: {why}"] * 4
    with pytest.raises(RunError, match=f"{why}, 3 updates skipped in a row: "):
        judged.step(**how)


def test_the_name_is_looked_up_before_the_last_skip_in_patience() -> None:
    judged = Judged(max_skips=2)
    judged.step(overflow=True)
    judged.engine.module = Network()
    with pytest.raises(RunError, match="2 updates skipped in a row: the weight of spoilt"):
        judged.step(overflow=True)


def test_nothing_is_looked_at_before_a_good_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds_llama.zero.nonfinite.first", lambda engine: pytest.fail("looked"))
    judged = Judged()
    for overflow in (False, True, False, False):
        assert judged.step(overflow=overflow) is None


def test_fp16_may_search_for_its_scale() -> None:
    judged = Judged(dynamic=True)
    for _ in range(20):
        judged.step(overflow=True)
    assert judged.events == []


def test_the_loss_of_fp16_has_no_scale() -> None:
    judged = Judged(dynamic=True, nonfinite="rollback")
    assert judged.step(math.inf) == "the loss is inf"


SPIKE = SpikeConfig(deviations=3.0, window=4, then="skip")
LOSSES = (2.0, 2.2, 1.8, 2.0)


@pytest.mark.parametrize("then", ["skip", "stop", "rollback"])
def test_a_spike(then: str) -> None:
    judged = Judged(spike=SPIKE.model_copy(update={"then": then}))
    for loss in (9.0, *LOSSES, 2.1):  # what came first is forgotten by now
        assert judged.step(loss) is None
    assert judged.state.losses.losses == [2.2, 1.8, 2.0, 2.1]
    why = "the loss 5.0000 is 20.1 deviations above the last 4"
    if then == "stop":
        with pytest.raises(RunError, match=why) as caught:
            judged.step(5.0)
        assert "finite" not in caught.value.what
    else:
        assert judged.step(5.0) == (why if then == "rollback" else None)
    assert judged.events == ([] if then == "rollback" else [f"{then}: {why}"])
    assert judged.state.losses.losses == [2.2, 1.8, 2.0, 2.1]  # it does not make others likely


def test_no_spike_before_the_window_is_full() -> None:
    judged = Judged(spike=SPIKE)
    for loss in LOSSES[:3]:
        judged.step(loss)
    assert judged.step(50.0) is None
    assert judged.events == []
    assert judged.state.losses == LossWindow([*LOSSES[:3], 50.0])


def test_a_rollback_starts_counting_anew() -> None:
    judged = Judged(nonfinite="rollback", max_skips=1)
    for _ in range(3):
        assert judged.step(math.nan) == "the loss is nan"
        assert judged.step(overflow=True) == guards.GRADIENTS
