"""What of a run `train.compile` does not go with; the DeepSpeed JSON's keys are in rule_cases."""

from __future__ import annotations

from typing import Any

import pytest

from ds_llama.config import load_run
from ds_llama.errors import ConfigErrors

RUN = {"model": {"preset": "tiny"}, "data": {"train": "x"}, "optimizer": {}}


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("reproducible", True, "train.reproducible: it has not been shown to give equal bits"),
        ("recompute", {"part": "mlp"}, "recompute.part 'mlp': it would break each block's graph"),
    ],
)
def test_what_does_not_go_with_it_is_refused(key: str, value: Any, why: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_run({**RUN, "train": {"steps": 1, "compile": True, key: value}})
    (error,) = caught.value.errors
    assert (error.code, error.where) == ("run-not-compiled", "run:train.compile")
    assert why in error.what
    assert error.remedy.startswith("remove one of the two")
    assert ("recompute blocks" in error.remedy) == (key == "recompute")
    load_run({**RUN, "train": {"steps": 1, key: value}})


@pytest.mark.parametrize("more", [{"recompute": {"every": 2}}, {"accounting": True}])
def test_blocks_may_be_recomputed_and_their_tensors_counted(more: dict[str, Any]) -> None:
    load_run({**RUN, "train": {"steps": 1, "compile": True, **more}})
