"""`lint --fix`: what is changed, what is left, and how little of the text is touched."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.config import fixes, patch
from ds_llama.config.lint import Linter
from tests.unit.config.lint_seeds import EXAMPLES, SEEDS, VALUES, mutated, places

LINTER = Linter()
HERE = Path("ds.json")


def fixed(text, linter=LINTER):
    return fixes.fix(linter, text, HERE)[0]


CLIPPED = '"gradient_clipping": 1.0'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # names
        ('{"zero_optimisation": {"stage": 2}}', '{"zero_optimization": {"stage": 2}}'),
        ('{"zero_optimization": {"stag": 2}}', '{"zero_optimization": {"stage": 2}}'),
        ('{"optimizer": {"type": "AdmW"}}', '{"optimizer": {"type": "AdamW"}}'),
        ('{"scheduler": {"type": "WarmupLr", "params": {}}}', None),
        # what does nothing, and what stops DeepSpeed
        (
            '{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}',
            '{"zero_optimization": {"stage": 2}}',
        ),
        ('{"amp": {"enabled": true}, "dump_state": true}', '{"dump_state": true}'),
        ('{"aio": {"queue_depth": 16}}', "{}"),
        # another place, another name, another type
        ('{"aio": {}, "lr": 1}', None),
        (
            '{"zero_optimization": {"stage": 3, "aio": {"queue_depth": 9}, '
            '"offload_param": {"device": "nvme", "nvme_path": "/n"}}}',
            '{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", '
            '"nvme_path": "/n"}}, "aio": {"queue_depth": 9}}',
        ),
        (
            '{"optimizer": {"type": "AdamW", "lr": 1e-3}}',
            '{"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}',
        ),
        (
            '{"zero_optimization": {"stage": 2, "cpu_offload": true}}',
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}',
        ),
        ('{"zero_optimization": 2}', '{"zero_optimization": {"stage": 2}}'),
        ('{"zero_optimization": true}', '{"zero_optimization": {"stage": 1}}'),
        ('{"train_batch_size": "16"}', '{"train_batch_size": 16}'),
        ('{"torch_autocast": {"enabled": "true"}}', '{"torch_autocast": {"enabled": true}}'),
    ],
)
def test_a_fix(before, after):
    """`None`: nothing is certain. The default that changed is written out in the end."""
    tree = json.loads(fixed(before))
    if after is None:
        assert tree["gradient_clipping"] == 1.0
        tree.pop("gradient_clipping")
        kept = {"lr"} & tree.keys() or tree.get("scheduler", {}).get("type") == "WarmupLR"
        assert kept
        return
    assert fixed(before) == (after[:-1] + (", " if len(after) > 2 else "") + CLIPPED + "}"), fixed(
        before
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"stage2_prefetch_bucket_size": 1}',  # no digit is guessed
        '{"fp8": {"enabled": true}}',
        '{"zero_optimization": {"stag": "two"}}',  # the value would not fit
        '{"zero_optimization": {"stag": 2, "stage": 3}}',  # both are there
        '{"zero_optimization": {"stage": 2}, "fp16": {"enabled": true}, "bf16": {"enabled": true}}',
        '{"bf16": {"enabled": true}}',  # half-at-stage-0 would train otherwise
        '{"comet": {"enabled": true, "api_key": "x"}}',  # a secret is revoked, not only removed
        '{"wandb": {"enabled": true, "api_key": "x"}}',
        '{"bf16": {"enabled": false, "loss_scale": 0}}',  # fp16 has it, and is another thing
        '{"model_type": "llama"}',  # a section of data_efficiency is not begun for it
        '{"curriculum_learning": {"enabled": true, "curriculum_type": "seqlen"}}',
        '{"bf16": {"enabled": false}, "bfloat16": {"enabled": true}}',
        '{"zero_optimization": {"stage": 2, "cpu_offload": true, "offload_optimizer": {}}}',
    ],
)
def test_what_is_not_certain_is_left(text):
    text = text[:-1] + f", {CLIPPED}}}"
    assert fixed(text) == text


def test_the_rest_of_the_text_stays_as_it_was():
    before = (
        '{\n\t"zero_optimisation": {"stage": 3,   "sub_group_size": 1e9},\n'
        '\t"timers"  : {\n\t},\n\t"gradient_clipping":1.00, "train_batch_size": 2E+1\n}\n'
    )
    assert fixed(before) == (
        '{\n\t"zero_optimization": {"stage": 3,   "sub_group_size": 1e9},\n'
        '\t"timers"  : {\n\t},\n\t"gradient_clipping":1.00, "train_batch_size": 2E+1\n}\n'
    )


def test_a_clipping_of_the_optimizer_is_not_lost_to_the_default():
    before = '{"optimizer": {"type": "AdmW", "params": {"max_grad_norm": 5}}}'
    assert json.loads(fixed(before)) == {
        "optimizer": {"type": "AdamW", "params": {}},
        "gradient_clipping": 5,
    }


def test_auto_that_nobody_fills_in_is_left_to_deepspeeds_default():
    before = '{"zero_optimization": {"stage": 3, "sub_group_size": "auto"}, "bf16": {}}'
    after = '{"zero_optimization": {"stage": 3}, "bf16": {}}'
    assert fixed(before, Linter("huggingface")) == after


def test_a_run_is_fixed_too_with_the_json_inside_it():
    before = (
        '{"model": {"preset": "tiny"}, "data": {"train": "x"}, "tarin": {"steps": 5},\n'
        ' "deepspeed": {"zero_optimization": {"stage": 1, "stage3_max_live_parameters": 1}}}'
    )
    assert fixed(before) == (
        '{"model": {"preset": "tiny"}, "data": {"train": "x"}, "train": {"steps": 5},\n'
        ' "deepspeed": {"zero_optimization": {"stage": 1}}}'
    )


def test_what_was_fixed_is_gone_and_what_was_not_is_reported(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimisation": {}, "bf16": {"enabled": true}}')
    result = fixes.fix_file(LINTER, path)
    assert [problem.code for problem in result.applied] == ["unknown-key", "changed-default"]
    assert [problem.code for problem in result.report.problems] == ["half-at-stage-0"]
    assert result.difference(Path("new.json"))[:2] == [f"--- {path}", "+++ new.json"]
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert fixes.fix_file(LINTER, broken).applied == ()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*SEEDS, *EXAMPLES]), st.integers(0, 2**32), st.lists(VALUES, max_size=3))
def test_fixing_twice_is_fixing_once(tree, seed, values):
    """And what it calls mended is not reported any more."""
    random_ = random.Random(seed)
    for value in values:
        tree = mutated(tree, random_, value) if any(path for path in places(tree)) else tree
    text = json.dumps(tree, indent=random_.choice([None, 2]))
    report = LINTER.report_of(text, HERE)
    if not report.readable:
        return
    once, applied = fixes.fix(LINTER, text, HERE)
    assert fixes.fix(LINTER, once, HERE) == (once, [])
    left = {(p.code, p.key) for p in LINTER.report_of(once, HERE).problems}
    assert {(p.code, p.key) for p in applied} & left == set()
    assert bool(applied) == (once != text)


# --- the text itself

NAMES = st.text(min_size=1, max_size=5)
TREES = st.dictionaries(
    NAMES, st.one_of(st.integers(), NAMES, st.dictionaries(NAMES, st.integers())), min_size=1
)


@given(TREES, st.integers(0, 1000), st.sampled_from([None, 0, 2, "\t"]), NAMES)
def test_a_change_of_the_text_is_that_change_of_the_tree(tree, index, indent, name):
    text = json.dumps(tree, indent=indent, ensure_ascii=bool(index % 2))
    paths = [path for path in places(tree) if path and all(isinstance(n, str) for n in path)]
    path = paths[index % len(paths)]
    owner = tree if len(path) == 1 else tree[path[0]]
    value = owner[path[-1]]
    assert patch.locate({"a": tree}, "a." + ".".join(path)) is not None

    assert json.loads(patch.write(text, path, [name])) == changed(tree, path, [name])
    assert json.loads(patch.remove(text, path)) == changed(tree, path)
    if name not in owner:
        renamed = json.loads(patch.rename(text, path, name))
        assert renamed == changed(changed(tree, path), (*path[:-1], name), value)
    if name not in tree:
        moved = json.loads(patch.move(text, path, (name, "x")))
        assert moved == changed(changed(tree, path), (name,), {"x": value})


def changed(tree, path, *value):
    tree = json.loads(json.dumps(tree))
    owner = tree
    for name in path[:-1]:
        owner = owner[name]
    owner.pop(path[-1], None)
    if value:
        owner[path[-1]] = value[0]
    return tree


def test_a_key_with_dots_is_found():
    assert patch.locate({"a.b": {"c": 1}, "a": {"b": 2}}, "a.b.c") == ("a.b", "c")
    assert patch.locate({"a": {"b": 2}}, "a.c") is None
    with pytest.raises(KeyError):
        patch.remove("{}", ("a",))
