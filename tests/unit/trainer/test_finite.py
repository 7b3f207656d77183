"""The hook that stops a run which learns nothing any more."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from ds_llama.errors import RunError
from ds_llama.trainer.hooks.finite import StopOnNonFinite

JOB = SimpleNamespace(
    state=SimpleNamespace(step=7), resolved=SimpleNamespace(run=SimpleNamespace(output="runs/x"))
)


def row(loss: float = 1.0, *, skipped: bool = False, loss_scale: float | None = None) -> dict:
    return {"loss": loss, "skipped": skipped, "loss_scale": loss_scale}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number(loss: float) -> None:
    with pytest.raises(RunError, match=f"the loss is {loss} at step 7") as caught:
        StopOnNonFinite().after_step(JOB, row(loss))
    assert caught.value.where == "step 7 of runs/x"


def test_the_third_skip_in_a_row() -> None:
    hook = StopOnNonFinite()
    for skipped in (True, True, False, True, True):
        hook.after_step(JOB, row(skipped=skipped))
    with pytest.raises(RunError, match="not finite, 3 updates skipped in a row"):
        hook.after_step(JOB, row(skipped=True))


def test_fp16_may_search_for_its_scale() -> None:
    hook = StopOnNonFinite()
    for _ in range(20):
        hook.after_step(JOB, row(math.inf, skipped=True, loss_scale=2.0))
