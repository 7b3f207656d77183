"""DeepSpeedCPUAdam goes on after a resume with the bits of one that never stopped."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

from ds_llama.zero import engine as engines


def _adam(values: torch.Tensor) -> tuple[torch.nn.Parameter, DeepSpeedCPUAdam]:
    parameter = torch.nn.Parameter(values.clone())
    return parameter, DeepSpeedCPUAdam([parameter], lr=1e-2, betas=(0.9, 0.95), adamw_mode=True)


def _update(parameter: torch.nn.Parameter, optimizer: DeepSpeedCPUAdam, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("recounted", [True, False])
def test_it_goes_on_bit_for_bit_if_it_is_recounted(recounted: bool) -> None:
    """After each of 40 updates another optimizer makes the next one too, and forgets it."""
    whole, optimizer = _adam(torch.ones(1000))
    other, resumed = _adam(torch.ones(1000))
    differing = 0
    for step in range(1, 41):
        _update(whole, optimizer, step)
        with torch.no_grad():
            other.copy_(whole)
        resumed.state[other] = copy.deepcopy(dict(optimizer.state[whole])) | {"step": 1000}
        _update(other, resumed, step)  # far away: what it counted last is of no use
        with torch.no_grad():
            other.copy_(whole)
        resumed.state[other] = copy.deepcopy(dict(optimizer.state[whole]))
        if recounted:
            engines.recount(SimpleNamespace(optimizer=resumed))
        _update(other, resumed, step + 1)
        expected, state = whole.detach().clone(), copy.deepcopy(dict(optimizer.state[whole]))
        _update(whole, optimizer, step + 1)
        differing += not torch.equal(other, whole)
        with torch.no_grad():
            whole.copy_(expected)
        optimizer.state[whole] = state
        engines.recount(SimpleNamespace(optimizer=optimizer))
    assert (differing == 0) == recounted
