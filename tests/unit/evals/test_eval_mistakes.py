"""What `ds-llama eval` refuses, and lm-eval where it is and is not installed."""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ds_llama.cli.main import main
from ds_llama.commit import manifest, protocol
from tests.unit.evals.exported import exported_run, write_rows

CHOICES = {"prompt": "The fox is", "choices": ["quick", "lazy"], "answer": 0}
FREE = {"prompt": "the quick brown", "answer": "fox"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = exported_run(tmp_path_factory.mktemp("run"))
    write_rows(folder / "choices.jsonl", CHOICES)
    write_rows(folder / "free.jsonl", FREE)
    write_rows(folder / "long.jsonl", CHOICES, CHOICES | {"choices": ["no", "fox " * 130]})
    write_rows(folder / "long_prompt.jsonl", FREE, FREE | {"prompt": "fox " * 130})
    write_rows(folder / "absent.jsonl", CHOICES, CHOICES | {"answer": "slow"})
    (folder / "broken.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt"\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "empty.txt").write_text("\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9 ol\xe9")
    return folder


@pytest.mark.parametrize(
    ("words", "code", "what", "where"),
    [
        ("--data {}/none.txt", 2, "there is no such file", "{}/none.txt"),
        ("--data {}/none.jsonl", 2, "there is no such file", "{}/none.jsonl"),
        ("--data {}/none", 2, "there is no such file", "{}/none"),
        ("--data {}/none.bin", 1, "there is no token shard file none.idx", "{}/none.idx"),
        ("--data {}/tokenizer", 2, "this is a folder", "{}/tokenizer"),
        ("--data {}/empty.txt", 1, "the file is empty", "{}/empty.txt"),
        ("--data {}/empty.jsonl", 1, "the file is empty", "{}/empty.jsonl"),
        ("--data {}/latin.txt", 1, "the file is not UTF-8: byte 3 is 0xe9", "{}/latin.txt"),
        ("--data {}/broken.jsonl", 1, "the line is not JSON", "{}/broken.jsonl:2"),
        (
            "--data {}/absent.jsonl",
            1,
            "the answer 'slow' is not among the choices",
            "{}/absent.jsonl:2",
        ),
        ("--data {}/long.jsonl", 1, "the prompt with a choice takes", "{}/long.jsonl:2"),
        (
            "--data {}/long_prompt.jsonl",
            1,
            "the prompt with 32 new tokens takes",
            "{}/long_prompt.jsonl:2",
        ),
        (
            "--data {}/free.jsonl --max-new-tokens 125",
            1,
            "the prompt with 125 new tokens takes",
            "{}/free.jsonl:1",
        ),
        (
            "--data {}/text.txt --sequence-length 8 --stride 9",
            2,
            "a stride of 9 does not fit windows of 8 tokens",
            "--stride",
        ),
        ("--data {}/free.jsonl --stride 4", 2, "--stride is for perplexity", "--stride"),
        ("--data {}/text.txt --out x", 2, "--out is for rows in a .jsonl", "--out"),
        (
            "--data {}/choices.jsonl --max-new-tokens 4",
            2,
            "--max-new-tokens needs --generate where rows have choices",
            "--max-new-tokens",
        ),
        (
            "--data {}/free.jsonl --out {}/none/x",
            2,
            "there is no folder to write this file into",
            "{}/none/x",
        ),
        ("--data {}/free.jsonl --out {}", 2, "this is a folder", "{}"),
        ("--data {}/free.jsonl --tokenizer {}/none", 2, "there is no tokenizer at", "{}/none"),
        ("--lm-eval x --data y", 2, "--data is nothing that lm-eval is told", "--data"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_are_three_lines(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    words: str,
    code: int,
    what: str,
    where: str,
) -> None:
    assert main(["eval", str(run), *words.replace("{}", str(run)).split()]) == code
    found = capsys.readouterr()
    lines = found.err.splitlines()
    assert lines[0].startswith(f"error: {what}")
    assert lines[1] == f"where: {where.replace('{}', str(run))}"
    assert lines[2].startswith("remedy: ")
    assert len(lines) == 3
    assert found.out == ""


def test_a_model_without_numbers_and_one_with_another_vocabulary(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(run / "export", tmp_path / "export")
    weights = tmp_path / "export" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    rows = run / "choices.jsonl"
    assert main(["eval", str(tmp_path / "export"), "--data", str(rows)]) == 1
    err = capsys.readouterr().err
    assert "error: the model finds a choice NaN likely: its weights are not finite" in err
    assert f"where: {rows}:1" in err
    assert main(["eval", str(tmp_path / "export"), "--data", str(run / "text.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] is None  # JSON has no NaN

    (tmp_path / "other").mkdir()
    small = exported_run(tmp_path / "other", vocab_size=200)
    assert main(["eval", str(small), "--data", str(rows)]) == 1
    assert "is outside the model's vocabulary of 200" in capsys.readouterr().err
    assert main(["eval", str(small), "--data", str(run / "text.txt")]) == 1
    assert "the model's vocabulary has 200 entries" in capsys.readouterr().err


def test_lm_eval_that_is_not_installed(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", str(run), "--lm-eval", "arc_easy"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: lm-eval is not installed",
        "where: --lm-eval",
        "remedy: pip install 'lm-eval[hf]', or score rows of your own with --data FILE.jsonl",
    ]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in that keeps what it was called with; a task named `bad` fails."""
    calls: dict[str, Any] = {}

    def simple_evaluate(**options: Any) -> dict[str, Any]:
        calls.update(options)
        if "bad" in options["tasks"]:
            raise KeyError("bad")
        print("progress on stdout")
        figures = {
            "alias": "arc",
            "acc,none": 0.25,
            "acc_stderr,none": "N/A",
            "by": simple_evaluate,
        }
        return {"results": {name: figures for name in options["tasks"]}}

    module = types.ModuleType("lm_eval")
    module.__spec__ = importlib.machinery.ModuleSpec("lm_eval", None)
    module.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", module)
    return calls


def test_lm_eval_is_given_the_export(
    run: Path, harness: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run), "--lm-eval", "arc_easy, piqa", "--batch-size", "8"]
    assert main([*words, "--max-batches", "2", "--json"]) == 0
    found = capsys.readouterr()
    report = json.loads(found.out)
    assert "progress on stdout" in found.err
    assert (report["task"], list(report["results"])) == ("lm-eval", ["arc_easy", "piqa"])
    assert report["results"]["piqa"]["acc,none"] == 0.25
    assert harness["model_args"] == {"pretrained": str(run / "export")}
    assert (harness["model"], harness["tasks"]) == ("hf", ["arc_easy", "piqa"])
    assert (harness["batch_size"], harness["limit"]) == (8, 16)
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["arc_easy", "acc", "0.2500"]
    assert harness["limit"] is None


def test_what_lm_eval_does_not_take(
    run: Path, harness: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["eval", str(run), "--lm-eval", "bad"]) == 1
    assert (
        "error: lm-eval failed (KeyError: 'bad')\nwhere: --lm-eval bad" in capsys.readouterr().err
    )
    root, name = tmp_path / "checkpoints", "step-00000003"
    staged = protocol.begin(root, name)
    (staged / "state.json").write_text("{}")
    entries = manifest.entries(staged, [staged / "state.json"])
    step = protocol.seal(root, name, entries, {"step": 3, "world_size": 1, "stage": 0})
    assert main(["eval", str(tmp_path), "--lm-eval", "arc_easy"]) == 1
    err = capsys.readouterr().err
    assert "error: lm-eval reads an exported folder, and this is a training checkpoint" in err
    assert f"remedy: export it first: ds-llama export {step} OUT" in err
