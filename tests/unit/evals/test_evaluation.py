"""`ds-llama eval` on text and on rows, beside transformers reading the same export."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from ds_llama.cli.main import main
from ds_llama.data import ShardWriter
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer
from ds_llama.evals import metrics, scoring
from ds_llama.evals.windows import Strided
from tests.unit.evals.exported import TEXT, exported_run, write_rows

# Unequal lengths, so that rows share a batch with padding.
CHOICES: list[dict[str, Any]] = [
    {"prompt": "The fox is", "choices": ["quick", "lazy and brown"], "answer": 0},
    {"prompt": "Over the lazy dog, he", "choices": ["lazy and brown", "quick"], "answer": "quick"},
    {"prompt": "home: ", "choices": ["quick", "lazy and brown"], "answer": 1},
    {"prompt": "a", "choices": ["quick", "lazy and brown"], "answer": 1},
    {"prompt": "jumps again\n", "choices": ["lazy and brown", "quick"], "answer": 1},
]
FREE: list[dict[str, Any]] = [
    {"prompt": "the quick brown", "answer": "fox"},
    {"prompt": "jumps", "answer": ["over", "the lazy dog"]},
    {"prompt": "and goes home", "answer": "again"},
]


class Reference(NamedTuple):
    """transformers' model and tokenizer of an export, and ours for bytes that are no UTF-8."""

    model: Any
    tokenizer: Any
    coder: Tokenizer

    @torch.no_grad()
    def strided(self, text: str, length: int, stride: int) -> tuple[float, int]:
        """(mean loss, tokens): the loop of transformers' page, each window by its predictions."""
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        total, tokens, previous_end = 0.0, 0, 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + length, ids.shape[1])
            targets = ids[:, begin:end].clone()
            targets[:, : -(end - previous_end)] = -100
            predicted = int((targets[:, 1:] != -100).sum())
            loss = self.model(ids[:, begin:end], labels=targets).loss
            total, tokens = total + float(loss) * predicted, tokens + predicted
            previous_end = end
            if end == ids.shape[1]:
                break
        return total / tokens, tokens

    @torch.no_grad()
    def loglikelihood(self, prompt: str, choice: str) -> float:
        """One sequence at a time, without padding; lm-eval's cut between prompt and choice."""
        joined = prompt + choice if prompt[-1].isspace() else f"{prompt} {choice}"
        ids = self.tokenizer(joined, return_tensors="pt").input_ids
        start = len(self.tokenizer(prompt.rstrip()).input_ids)
        logp = self.model(ids).logits[0].float().log_softmax(-1)
        return float(sum(logp[at - 1, ids[0, at]] for at in range(start, ids.shape[1])))

    @torch.no_grad()
    def answer(self, prompt: str, new_tokens: int) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        whole = self.coder.decode(out[0].tolist())
        return whole[len(prompt) :].strip().partition("\n")[0].rstrip()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def reference(run: Path) -> Reference:
    model = transformers.LlamaForCausalLM.from_pretrained(run / "export", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "export")
    return Reference(model.eval(), tokenizer, load_tokenizer(run / "tokenizer"))


@pytest.fixture
def text(run: Path) -> Path:
    path = run / "held_out.txt"
    path.write_text(f"{TEXT}Grüße — 2 foxes\n{TEXT * 3}", encoding="utf-8")
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("stride", [7, 20, 32, None])
def test_strided_perplexity_equals_transformers(
    run: Path,
    text: Path,
    reference: Reference,
    stride: int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--data", text, "--sequence-length", 32]
    words += ["--stride", stride] if stride else []
    found = evaluated(capsys, run, *words)
    content = text.read_text(encoding="utf-8")
    loss, tokens = reference.strided(content, 32, stride or 31)
    assert found["loss"] == pytest.approx(loss, rel=2e-6)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found["tokens"], found["stride"]) == (tokens, stride or 31)
    bits = found["loss"] * tokens / math.log(2) / len(content.encode())
    assert found["bits_per_byte"] == pytest.approx(bits)


def test_an_overlap_that_counts_twice_is_seen(
    run: Path,
    text: Path,
    reference: Reference,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Strided, "__getitem__", lambda self, i: _whole(self, i))
    words = ("--data", text, "--sequence-length", 32, "--stride", 20)
    found = evaluated(capsys, run, *words)
    loss, tokens = reference.strided(text.read_text(encoding="utf-8"), 32, 20)
    assert found["tokens"] > tokens
    assert found["loss"] != pytest.approx(loss, rel=1e-4)


def _whole(windows: Strided, index: int) -> Any:
    if index >= len(windows):
        raise IndexError
    start = min(index * windows.stride, len(windows.corpus.tokens) - windows.length)
    return windows.corpus.tokens[start : start + windows.length]


def test_a_shard_of_the_same_text_costs_the_same_bits(
    run: Path, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    coder = load_tokenizer(run / "tokenizer")
    content = text.read_text(encoding="utf-8")
    with ShardWriter(tmp_path / "shard", vocab_size=coder.vocab_size) as shard:
        shard.add(coder.encode(content, bos=True))
    words = ("--sequence-length", 32, "--stride", 9)
    of_text = evaluated(capsys, run, "--data", text, *words)
    of_shard = evaluated(capsys, run, "--data", tmp_path / "shard", *words)
    names = ("loss", "tokens", "perplexity", "bits_per_byte")
    assert [of_text[name] for name in names] == [of_shard[name] for name in names]
    # the bytes are those of all windows
    part = evaluated(capsys, run, "--data", text, "--max-batches", 1)
    assert part["bits_per_byte"] is None
    assert main(["eval", str(run), "--data", str(text)]) == 0
    assert f"bits a byte, over {of_text['tokens']} tokens of {text}" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_choices_are_as_likely_as_transformers_finds_them(
    run: Path,
    reference: Reference,
    tmp_path: Path,
    batch_size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *CHOICES)
    out = tmp_path / "answers.jsonl"
    words = ("--data", path, "--batch-size", batch_size, "--out", out)
    found = evaluated(capsys, run, *words)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    gold, plain, normalised = [], [], []
    for row, asked in zip(rows, CHOICES, strict=True):
        choices, answer = asked["choices"], asked["answer"]
        expected = [reference.loglikelihood(asked["prompt"], choice) for choice in choices]
        assert row["loglikelihoods"] == pytest.approx(expected, rel=1e-5)
        per_character = [v / len(c) for v, c in zip(expected, choices, strict=True)]
        gold.append(choices[answer] if isinstance(answer, int) else answer)
        plain.append(choices[expected.index(max(expected))])
        normalised.append(choices[per_character.index(max(per_character))])
    assert [row["predicted"] for row in rows] == plain
    assert [row["predicted_norm"] for row in rows] == normalised
    assert [row["answers"] for row in rows] == [[label] for label in gold]
    assert plain != normalised, "equal answers would not tell acc from acc_norm"
    for given, suffix in ((plain, ""), (normalised, "_norm")):
        assert found[f"acc{suffix}"] == metrics.accuracy(gold, given)
        means = metrics.macro(gold, given)._asdict()
        assert {name: found[f"macro_{name}{suffix}"] for name in means} == means


def test_padding_that_is_looked_at_is_seen(
    run: Path,
    reference: Reference,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = scoring._right_padded
    monkeypatch.setattr(
        scoring, "_right_padded", lambda pairs: tuple(part.roll(1, 1) for part in right(pairs))
    )
    path, out = write_rows(tmp_path / "rows.jsonl", *CHOICES), tmp_path / "answers.jsonl"
    evaluated(capsys, run, "--data", path, "--out", out, "--batch-size", 64)
    row = json.loads(out.read_text(encoding="utf-8").splitlines()[0])
    expected = reference.loglikelihood(CHOICES[0]["prompt"], CHOICES[0]["choices"][0])
    assert row["loglikelihoods"][0] != pytest.approx(expected, rel=1e-3)


def test_rows_with_choices_of_their_own_have_no_classes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"prompt": "b", "choices": ["one", "two"], "answer": 0}
    path = write_rows(tmp_path / "rows.jsonl", CHOICES[0], other)
    found = evaluated(capsys, run, "--data", path)
    assert found["macro_f1"] is found["macro_f1_norm"] is None
    assert 0 <= found["acc"] <= 1
    assert main(["eval", str(run), "--data", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == f"2 rows of {path}"
    assert [line.split()[-1] for line in lines if line.startswith("macro")] == ["-"] * 3


def test_free_answers_are_what_transformers_writes(
    run: Path, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = [reference.answer(row["prompt"], 9) for row in FREE]
    asked = [*FREE, {"prompt": FREE[0]["prompt"], "answer": ["no", written[0]]}]
    path, out = write_rows(tmp_path / "rows.jsonl", *asked), tmp_path / "answers.jsonl"
    words = ("--data", path, "--max-new-tokens", 9, "--batch-size", 2, "--out", out)
    found = evaluated(capsys, run, *words)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == [*written, written[0]]
    assert rows[-1]["exact_match"] == rows[-1]["f1"] == 1
    for name in ("exact_match", "f1"):
        assert found[name] == pytest.approx(sum(row[name] for row in rows) / 4)


def test_choices_by_what_is_written(
    run: Path, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = reference.answer(FREE[0]["prompt"], 9)
    rows = [
        {"prompt": FREE[0]["prompt"], "choices": [first, "something else"], "answer": first},
        {"prompt": FREE[1]["prompt"], "choices": ["something else", first], "answer": first},
    ]
    path, out = write_rows(tmp_path / "rows.jsonl", *rows), tmp_path / "answers.jsonl"
    words = ("--data", path, "--generate", "--max-new-tokens", 9, "--out", out)
    found = evaluated(capsys, run, *words)
    given = [json.loads(line)["predicted"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert given[0] == first
    assert found["acc"] == metrics.accuracy([first, first], given)
    assert found["unanswered"] == given.count(None)
    assert found["macro_recall"] == metrics.macro([first, first], given).recall
