"""DeepSpeed itself as the judge: what it refuses to read is never passed by lint."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
from collections.abc import Iterator

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from ds_llama.config.deepspeed import check
from ds_llama.config.lint import is_run
from tests.unit.config.lint_seeds import EXAMPLES, SEEDS, mutated, places

CASES = 800 * int(os.environ.get("DS_LLAMA_FUZZ", "1"))
VALUES = [
    *(None, True, False, "auto", "", "none", "cpu", "nvme", "true", "3", "fp32", "bf16"),
    *(0, 1, -1, 2, 3, 16, 1.5, 0.0, -5, 1e9, 10**30, [], {}, [1, 2], {"a": 1}),
]
FILES = [tree for tree in (*SEEDS, *EXAMPLES) if not is_run(tree) and "auto" not in str(tree)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def refusal(content: dict[str, object]) -> Exception | None:
    """What DeepSpeed raises when it reads that on one rank."""
    try:
        DeepSpeedConfig(copy.deepcopy(content))
    except Exception as error:  # whatever it is: assertions, pydantic, KeyError
        return error
    return None


def with_batch(content: dict[str, object]) -> dict[str, object]:
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu")
    given = any(content.get(name) is not None for name in sizes)
    return content if given else {**content, "train_micro_batch_size_per_gpu": 1}


def errors(content: dict[str, object]) -> list[str]:
    return [p.code for p in check(content, world_size=1) if p.severity == "error"]


@pytest.mark.parametrize("seed", range(4))
def test_what_deepspeed_refuses_lint_reports(seed: int) -> None:
    random_, refused = random.Random(seed), 0
    for _ in range(CASES // 4):
        tree = random_.choice(FILES)
        for _ in range(random_.choice([0, 1, 1, 2])):
            if any(path for path in places(tree)):
                tree = mutated(tree, random_, random_.choice(VALUES))
        content = with_batch(tree)
        error = refusal(content)
        refused += error is not None
        assert error is None or errors(content), f"{error!r}: {json.dumps(content)}"
    assert refused > CASES // 4 // 10  # the judge did judge


def test_the_judge_is_not_asked_in_vain() -> None:
    """The twin: with lint silenced about types, DeepSpeed refuses what passes."""
    content = with_batch({"zero_optimization": {"stage": "two"}})
    assert refusal(content) is not None
    assert set(errors(content)) == {"wrong-type"}
