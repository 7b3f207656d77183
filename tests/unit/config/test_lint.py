from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_llama.cli.lint import command
from ds_llama.config.lint import Linter, is_run
from tests.unit.config.lint_seeds import SEEDS, VALUES, mutated, places

CLEAN = {"gradient_clipping": 1.0, "zero_optimization": {"stage": 2}}
WARNED = {"zero_optimization": {"stage": 2}}
WRONG = {"gradient_clipping": 1.0, "zero_optimisation": {"stage": 2}}


def lint(path, dialect="deepspeed"):
    return Linter(dialect).report(path)


def run_lint(capsys, *files, **options):
    code = command(list(files), **options)
    return code, capsys.readouterr().out


def test_exit_codes(write, capsys, tmp_path):
    clean, warned = write("clean.json", CLEAN), write("warned.json", WARNED)
    wrong, broken = write("wrong.json", WRONG), tmp_path / "broken.json"
    broken.write_text("{")
    assert run_lint(capsys, clean, warned)[0] == 0
    assert run_lint(capsys, clean, warned, strict=True)[0] == 1
    assert run_lint(capsys, clean, wrong)[0] == 1
    assert run_lint(capsys, wrong, broken)[0] == 2
    assert run_lint(capsys, tmp_path / "missing.json")[0] == 2


def test_text_says_place_code_message_and_remedy(write, capsys):
    path = write("wrong.json", WRONG)
    _, out = run_lint(capsys, path)
    assert out.splitlines() == [
        f"{path}: 1 error, 0 warnings",
        f"  error [unknown-key] {path}:zero_optimisation",
        "    unknown key 'zero_optimisation'",
        "    remedy: did you mean 'zero_optimization'?",
    ]


def test_json_is_one_document(write, capsys, tmp_path):
    files = [write("clean.json", CLEAN), write("wrong.json", WRONG), tmp_path / "gone.json"]
    _, out = run_lint(capsys, *files, json=True)
    clean, wrong, gone = json.loads(out)["files"]
    assert clean == {"path": str(files[0]), "problems": []}
    (problem,) = wrong["problems"]
    assert set(problem) == {"code", "severity", "key", "message", "remedy"}
    assert gone["problems"][0]["code"] == "unreadable"


def test_a_syntax_error_keeps_its_line(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{\n"a": }')
    (problem,) = lint(path).problems
    assert problem.key == "2:6"


def test_dialect(write, capsys):
    path = write("hf.json", {**CLEAN, "train_batch_size": "auto"})
    assert run_lint(capsys, path)[0] == 1
    assert run_lint(capsys, path, dialect="huggingface")[0] == 0


def test_a_run_is_told_from_a_deepspeed_json(write, tree):
    assert is_run(tree)
    assert is_run({"modle": {}, "data": {}, "train": {}})
    assert not is_run(CLEAN)
    assert not is_run({})
    write("zero.json", WRONG)
    tree |= {"deepspeed": "zero.json", "train": {"step": 3}, "optimizer": {"lr": -1}}
    path = write("run.json", tree)
    found = {(problem.key, problem.code) for problem in lint(path).problems}
    assert found == {
        ("train.step", "unknown-key"),
        ("optimizer.lr", "wrong-value"),
        (f"{path.parent}/zero.json:zero_optimisation", "unknown-key"),
    }


def test_warnings_of_a_run_and_what_it_names(write, tree):
    tree["deepspeed"] = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}
    (problem,) = lint(write("run.json", tree)).problems
    assert (problem.code, problem.severity) == ("bucket-above-model", "warning")
    assert problem.key == "deepspeed.zero_optimization.reduce_bucket_size"
    tree["deepspeed"] = "gone.json"
    report = lint(write("run.json", tree))
    assert not report.readable
    assert "gone.json" in report.problems[0].key


def test_no_data_is_touched(write, tree):
    tree["data"] = {"train": "no/such/shard", "tokenizer": "no/such/tokenizer"}
    assert lint(write("run.json", tree)).problems == []


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(SEEDS), st.integers(0, 2**32), st.lists(VALUES, min_size=1, max_size=3))
@pytest.mark.parametrize("dialect", ["deepspeed", "huggingface"])
def test_no_mutation_of_a_valid_json_crashes_it(tmp_path, dialect, tree, seed, values):
    random_ = random.Random(seed)
    for value in values:
        tree = mutated(tree, random_, value) if any(path for path in places(tree)) else tree
    path = tmp_path / "mutated.json"
    path.write_text(json.dumps(tree))
    report = lint(path, dialect)
    assert all(problem.message and problem.remedy for problem in report.problems)
    assert json.dumps(report.to_dict())
