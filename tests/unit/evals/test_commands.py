"""`ds-llama eval` on an exported folder, from the command line's entry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_llama.cli.main import main
from ds_llama.data import ShardWriter
from ds_llama.data.tokenizer import train_tokenizer
from ds_llama.evals.load import load_for_inference
from ds_llama.evals.perplexity import evaluate
from ds_llama.evals.windows import Strided, read_shard
from ds_llama.weights.export import export_model
from tests.unit.evals.models import small, windows

VOCABULARY = 400


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an export, a tokenizer in it, and a validation shard."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and goes home again\n" * 40)
    train_tokenizer([text], folder / "tokenizer", vocab_size=290)
    model = small(vocab_size=VOCABULARY, eos_token_id=2).float()
    export_model(model, model.config, folder / "export", tokenizer=folder / "tokenizer")
    with ShardWriter(folder / "validation", vocab_size=VOCABULARY) as shard:
        for window in windows(6, tokens=50):
            shard.add(window)
    data = {"validation": str(folder / "validation"), "sequence_length": 33}
    (folder / "run.json").write_text(json.dumps({"model": model.config.to_hf(), "data": data}))
    return folder


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """The one document on stdout."""
    assert main([*words, "--json"]) == 0
    found = capsys.readouterr()
    return json.loads(found.out)


def test_eval_reads_the_runs_own_shard(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "eval", str(run))
    assert found["tokens"] == 6 * 50 - 1
    assert found["sequence_length"] == 33
    dataset = Strided(read_shard(run / "validation", None), 33)
    expected = evaluate(load_for_inference(run).model, dataset, micro_batch_size=4)
    assert found["loss"] == expected.loss
    assert found["perplexity"] == expected.perplexity

    assert main(["eval", str(run), "--max-batches", "1", "--batch-size", "2"]) == 0
    assert f"over 64 tokens of {run / 'validation'}" in capsys.readouterr().out


def test_eval_takes_other_data_and_lengths(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--data", str(run / "validation"), "--sequence-length", "50")
    assert _json(capsys, "eval", str(run / "export"), *words)["tokens"] == 6 * 50 - 1
    assert main(["eval", str(run), *words[:3], "65", "--json"]) == 0
    found = capsys.readouterr()
    assert found.err == "note: windows of 65 tokens go beyond the model's 64 positions\n"
    assert json.loads(found.out)["tokens"] == 6 * 50 - 1


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["eval", "{}/none"], 2, "error: there is no such folder"),
        (["eval", "{}", "--data", "{}/none"], 2, "none"),
    ],
    ids=str,
)
def test_mistakes_are_three_lines(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, what: str
) -> None:
    assert main([word.format(run) for word in words]) == code
    found = capsys.readouterr()
    assert what in found.err
    assert found.err.count("\n") == 3
    assert found.out == ""


def test_what_an_export_does_not_say(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small(vocab_size=50).float()
    export_model(model, model.config, tmp_path / "a" / "b" / "out")
    out = str(tmp_path / "a" / "b" / "out")
    assert main(["eval", out]) == 2
    assert "no run.json above the checkpoint names a validation shard" in capsys.readouterr().err
    words = ["eval", out, "--data", str(run / "validation"), "--sequence-length", "33"]
    assert main(words) == 1
    assert "the model's vocabulary has 50 entries" in capsys.readouterr().err
