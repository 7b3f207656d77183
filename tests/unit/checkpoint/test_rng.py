from __future__ import annotations

import json
import random

import numpy as np
import torch

from ds_llama.checkpoint import rng


def _draw() -> list[float]:
    return [
        random.gauss(0, 1),
        random.random(),
        float(np.random.randn()),
        float(np.random.rand()),
        *torch.randn(3).tolist(),
    ]


def test_every_generator_goes_on_where_it_was() -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    _draw()  # an odd number of normal draws: both generators keep half of a pair
    state = json.loads(json.dumps(rng.capture()))
    expected = _draw()
    _draw()
    assert _draw() != expected
    rng.restore(state)
    assert _draw() == expected


def test_the_state_of_a_device_that_is_not_here_is_left_alone() -> None:
    state = rng.capture()
    assert "device" not in state
    rng.restore({**state, "device": "AAAA"})
