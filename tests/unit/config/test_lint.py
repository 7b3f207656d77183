from __future__ import annotations

import json
import os
import random
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.cli.lint import command, exit_code, text
from ds_llama.config import load_run, shipped
from ds_llama.config.explain import stories
from ds_llama.config.lint import Linter, is_run
from ds_llama.config.resolve import resolve
from ds_llama.errors import ConfigErrors
from tests.unit.config.lint_seeds import EXAMPLES, SEEDS, VALUES, mutated, places

HERE = Path("ds.json")
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


# Thousands in the suite; DS_LLAMA_FUZZ=100 makes it a hundred times that.
MORE = int(os.environ.get("DS_LLAMA_FUZZ", "1"))
LINTERS = st.builds(
    Linter,
    st.sampled_from(["deepspeed", "huggingface"]),
    st.sampled_from([None, None, 1, 3, 2**40]),
    st.sampled_from([None, None, "cpu", "cuda"]),
)


# Warnings in a script's file, which may do more than it says; errors in a run.
STRICTER = {"number-alone", "partition-alone"}


def check_report(report):
    """Whatever was read, there is a report that can be printed, and each problem is a whole one."""
    for problem in report.problems:
        assert problem.message
        assert problem.remedy
        assert problem.code in stories()
        assert problem.severity == stories()[problem.code].severity or problem.code in STRICTER
    assert json.dumps(report.to_dict())
    assert text(report).isprintable() or "\n" in text(report)
    assert exit_code([report], strict=False) in (0, 1, 2)
    assert report.readable or exit_code([report], strict=True) == 2


@settings(max_examples=600 * MORE, deadline=None)
@given(
    LINTERS,
    st.sampled_from([*SEEDS, *EXAMPLES]),
    st.integers(0, 2**32),
    st.lists(VALUES, min_size=1, max_size=3),
)
def test_no_mutation_of_a_valid_json_crashes_it(linter, tree, seed, values):
    """Keys renamed and removed, values replaced by any others."""
    random_ = random.Random(seed)
    for value in values:
        tree = mutated(tree, random_, value) if any(path for path in places(tree)) else tree
    check_report(linter.report_of(json.dumps(tree), Path("mutated.json")))


PIECES = st.one_of(
    st.text(max_size=5),
    st.sampled_from(
        [
            *(
                "// mine",
                "/* mine */",
                "# mine\n",
                "\ufeff",
                "\x00",
                "\x1b[31m",
                "\u2028",
                "é",
                "😀",
            ),
            *("NaN", "-Infinity", "1e999", "0" * 5000, "9" * 5000, "-0", "01", "1.", ".5", "+1"),
            *('"\\ud800"', '"\\u0000"', '"a":', '"stage": 3,', "[" * 2000, '{"a":' * 500),
            *("}", "]", ",", ":", '"', "\\", "'", "true", "True", "null", "{}", "[]"),
        ]
    ),
)


@settings(max_examples=1200 * MORE, deadline=None)
@given(
    LINTERS,
    st.sampled_from([json.dumps(tree, indent=1) for tree in (*SEEDS, *EXAMPLES)]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), PIECES), max_size=3),
    st.floats(0, 1),
    st.booleans(),
)
def test_no_text_crashes_it(linter, content, edits, end, truncated):
    """Pieces put in and cut out anywhere, keys twice, comments, the end missing."""
    for place, cut, piece in edits:
        at = int(place * len(content))
        content = content[:at] + piece + content[at + cut :]
    check_report(
        linter.report_of(content[: int(end * len(content))] if truncated else content, HERE)
    )


@settings(max_examples=200 * MORE, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_it(content):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(content)
        file.flush()
        check_report(Linter().report(Path(file.name)))


@pytest.mark.parametrize("value", [[], {}, [[]], None, 1, "", "Adam"])
def test_a_type_that_is_no_name(write, tree, value):
    """Found by a long run of the mutations."""
    tree["optimizer"] = {"type": value}
    check_report(lint(write("run.json", tree)))
    check_report(lint(write("ds.json", {"optimizer": {"type": value}, "scheduler": tree})))


def test_what_a_run_writes_is_clean(tree):
    """Its run.json, and the effective DeepSpeed JSON as anybody's."""
    seen = 0
    for name in shipped.names():
        for device in ("cuda", "cpu"):
            run = {**tree, "deepspeed": name, "train": {"global_batch_size": 8}}
            with suppress(ConfigErrors):
                written = resolve(load_run(run), 2, device=device).to_json()
                seen += 1
                known = Linter(world_size=2, device=device)
                for content in (written, written["deepspeed"]):
                    found = known.problems(json.loads(json.dumps(content)), HERE)
                    errors = [problem for problem in found if problem.severity == "error"]
                    assert errors == [], name
    assert seen > 25


def test_what_is_no_file(tmp_path):
    loop, device = tmp_path / "loop.json", Path("/dev/zero")
    loop.symlink_to(loop)
    words = {
        tmp_path: "is a directory",
        tmp_path / "gone.json": "no such file",
        loop: "too many levels of symbolic links",
        device: "has more than 64 MiB",
        Path("a\0b"): "null byte",
        Path("x" * 5000): "name too long",
        tmp_path / "file" / "inside.json": "no such file",
    }
    for path, word in words.items():
        report = Linter().report(path)
        check_report(report)
        assert not report.readable
        assert word in report.problems[0].message


def test_a_pipe_is_read():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        json.dump(CLEAN, file)
    assert Linter().report(Path(f"/dev/fd/{reading}")).problems == []
    os.close(reading)


def test_nesting_as_deep_as_it_gets():
    for depth in (60, 64, 65, 1000, 100_000):
        content = '{"a":' * depth + "1" + "}" * depth
        check_report(Linter().report_of(content, HERE))
        check_report(Linter().report_of("[" * depth + "]" * depth, HERE))
