"""The hook that stops a run which learns nothing any more."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from ds_llama.errors import RunError
from ds_llama.trainer.hooks.finite import StopOnNonFinite


class Network(torch.nn.Module):
    """Two weights, the second of which is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.good = torch.nn.Parameter(torch.zeros(2))
        self.spoilt = torch.nn.Parameter(torch.tensor([0.0, math.nan]))


def job(module: torch.nn.Module) -> SimpleNamespace:
    engine = SimpleNamespace(module=module, optimizer=None, zero_optimization_stage=lambda: 0)
    run = SimpleNamespace(output="runs/x")
    return SimpleNamespace(
        engine=engine, state=SimpleNamespace(step=7), resolved=SimpleNamespace(run=run)
    )


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)


JOB = job(torch.nn.Linear(1, 1))


def row(loss: float = 1.0, *, skipped: bool = False, loss_scale: float | None = None) -> dict:
    return {"loss": loss, "skipped": skipped, "loss_scale": loss_scale}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number(loss: float) -> None:
    with pytest.raises(RunError, match=f"the loss is {loss} at step 7: every weight") as caught:
        StopOnNonFinite().after_step(JOB, row(loss))
    assert caught.value.where == "step 7 of runs/x"
    with pytest.raises(RunError, match=r"the weight of spoilt \(rank 0\) is not finite"):
        StopOnNonFinite().after_step(job(Network()), row(loss))


@pytest.mark.parametrize("loss_scale", [None, 1024.0])
def test_the_third_skip_in_a_row(loss_scale: float | None) -> None:
    """Under a static loss scale too, which no skip ever changes."""
    hook = StopOnNonFinite()
    for skipped in (True, True, False, True, True):
        hook.after_step(JOB, row(skipped=skipped, loss_scale=loss_scale))
    hook._look(job(Network()).engine)
    with pytest.raises(RunError, match="3 updates skipped in a row: the weight of spoilt"):
        hook.after_step(JOB, row(skipped=True, loss_scale=loss_scale))


def test_nothing_is_looked_at_before_a_good_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds_llama.zero.nonfinite.first", lambda engine: pytest.fail("looked"))
    hook = StopOnNonFinite()
    for skipped in (False, True, False, False):
        hook._look(JOB.engine)
        hook.after_step(JOB, row(skipped=skipped))


def test_fp16_may_search_for_its_scale() -> None:
    hook = StopOnNonFinite()
    hook.patient = True
    for _ in range(20):
        hook.after_step(JOB, row(math.inf, skipped=True, loss_scale=2.0))
