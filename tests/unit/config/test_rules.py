"""Each rule: what triggers it, and the nearest thing that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_llama.config import rules
from ds_llama.config.deepspeed import check
from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context
from tests.unit.config.lint_codes import codes_of
from tests.unit.config.rule_cases import CASES
from tests.unit.config.rule_words import (
    BF16,
    CPU,
    FP16,
    ON_CPU,
    REPRODUCIBLE,
    TINY,
    adam,
    scheduler,
    zero,
)


def identity(case):
    return f"{case[0]}:{case[1]}"


@pytest.mark.parametrize("case", CASES, ids=identity)
def test_a_rule_finds_what_it_is_for_and_leaves_the_rest(case):
    code, key, bad, good, known = case
    (found,) = [p for p in check(bad, **known) if (p.code, p.key) == (code, key)]
    assert found.message
    assert found.remedy
    assert [p for p in check(good, **known) if (p.code, p.key) == (code, key)] == []


@pytest.mark.parametrize("case", CASES, ids=identity)
def test_a_rule_is_silent_about_what_it_does_not_know(case):
    """Without run, model, world and device the rules that need them say nothing, and none fails."""
    _, _, bad, good, _ = case
    for deepspeed in (bad, good):
        assert all(isinstance(problem, Problem) for problem in check(deepspeed))


def test_every_code_of_a_rule_has_a_case():
    codes = set().union(*(codes_of(path) for path in Path(rules.__file__).parent.glob("*.py")))
    assert len(codes) > 90
    assert codes <= {case[0] for case in CASES}


def test_every_rule_is_found_by_itself():
    names = {rule.__module__.rsplit(".", 1)[-1] for rule in rules.all_rules()}
    folder = Path(rules.__file__).parent
    assert names == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert len(rules.all_rules()) > 30


def test_rules_meet_only_values_that_fit_the_schema():
    deepspeed = {
        "zero_optimization": {"stage": "three", "sub_group_size": "x", "offload_param": 3},
        "bf16": [],
        "optimizer": {"type": 3, "params": 4},
        "gradient_accumulation_steps": "many",
    }
    found = check(deepspeed, **TINY, **ON_CPU)
    assert {p.code for p in found if p.severity == "error"} == {"wrong-type"}


def test_a_misspelt_key_beside_the_right_one_hides_nothing():
    given = {"zero_optimisation": {"stage": 3}, "zero_optimization": {"stage": 2}}
    given["zero_optimization"]["offload_optimizer"] = {"device": "nvme"}
    codes = {problem.code for problem in check(given)}
    assert {"unknown-key", "nvme-without-path", "nvme-below-stage-3"} <= codes


def test_a_misspelt_key_is_not_taken_for_an_absent_one():
    """bf16 without a stage is an error of its own, but the stage is only misspelt here."""
    for wrong in ({"zero_optimisation": {"stage": 2}}, {"zero_optimization": {"stag": 2}}):
        found = check({**BF16, **wrong, "gradient_clipping": 1.0})
        assert [problem.code for problem in found] == ["unknown-key"]


def test_null_and_auto_are_absent_to_a_rule():
    context = Context({"a": {"b": "auto", "c": None, "d": 0}})
    assert context.get("a.b", 1) == context.get("a.c", 1) == context.get("x.y.z", 1) == 1
    assert context.get("a.d", 1) == 0
    assert not context.has("a.c")


def words(deepspeed, **known):
    return {p.code: f"{p.message} | {p.remedy}" for p in check(deepspeed, **known)}


def test_reproducible_needs_a_power_of_two_of_ranks():
    assert "not-reproducible" not in words({}, **REPRODUCIBLE, world_size=4)
    text = words({}, **REPRODUCIBLE, world_size=6)["not-reproducible"]
    assert "a division by 6 rounds | take 4 or 8 ranks" in text


def test_messages_carry_the_numbers():
    text = words({"train_batch_size": 7, **zero(3), "train_micro_batch_size_per_gpu": 2})
    assert "train_batch_size (7) is not a multiple of" in text["batch-product"]
    assert "6 = 2 micro x 3" in text["batch-product"]
    text = words(zero(2, reduce_bucket_size=5e8), **TINY)["bucket-above-model"]
    assert "500M" in text
    assert "125k" in text
    text = words({"tensor_parallel": {"autotp_size": 4}}, **TINY)["parallel-heads"]
    assert "(4) must divide num_key_value_heads (2) | take one of 1, 2" in text
    assert "did you mean 'AdamW'?" in words(adam("AdmW"))["optimizer-type"]
    assert "did you mean 'WarmupLR'?" in words(scheduler("WarmupLr"))["scheduler-type"]
    assert "take stage 3" in words(zero(2, offload_param=CPU))["no-effect-at-stage"]
    text = words({**FP16, **zero(2)}, **REPRODUCIBLE)["not-reproducible"]
    assert text == (
        "train.reproducible does not go with fp16.enabled: its loss scale changes what is rounded"
        " | remove it, or remove train.reproducible from the run"
    )
    assert "take stage 1 or 2" in words(zero(3, round_robin_gradients=True))["no-effect-at-stage"]
