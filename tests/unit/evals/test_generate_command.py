"""`ds-llama generate` on an exported folder, from the command line's entry."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers.models import WordLevel

from ds_llama.cli.main import main
from ds_llama.cli.screen import Screen
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from ds_llama.evals import complete
from ds_llama.evals.generate import generate
from ds_llama.evals.load import load_for_inference
from ds_llama.evals.stream import TextStream
from ds_llama.weights.export import export_model
from tests.unit.evals.models import small

PROMPTS = ["the quick", "home", "the lazy dog and"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder with a tokenizer in it; its random weights know more ids than that."""
    folder = tmp_path_factory.mktemp("export")
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and goes home again\n" * 40)
    train_tokenizer([text], folder / "tokenizer", vocab_size=290)
    model = small(vocab_size=400, eos_token_id=2).float()
    return export_model(model, model.config, folder / "out", tokenizer=folder / "tokenizer")


@pytest.fixture(scope="module")
def coder(export: Path) -> Tokenizer:
    return load_tokenizer(export)


def _words(*prompts: str) -> list[str]:
    return [word for prompt in prompts for word in ("--prompt", prompt)]


def _json(capsys: Capture, export: Path, *words: str) -> dict[str, Any]:
    """The one document on stdout."""
    assert main(["generate", str(export), *words, "--json"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    document: dict[str, Any] = json.loads(found.out)
    return document


def test_one_document_has_all(export: Path, coder: Tokenizer, capsys: Capture) -> None:
    found = _json(capsys, export, *_words(*PROMPTS), "--max-new-tokens", "5")
    loaded = load_for_inference(export)
    prompts = [coder.encode(text, bos=True) for text in PROMPTS]
    new = generate(loaded.model, prompts, max_new_tokens=5, eos={2}, vocab_size=290)
    # without the tokenizer's size these random weights draw what it does not know
    assert max(map(max, generate(loaded.model, prompts, max_new_tokens=5))) >= coder.vocab_size
    whole = [coder.decode([*ids, *more]) for ids, more in zip(prompts, new, strict=True)]
    assert found["prompts"] == PROMPTS
    assert found["tokens"] == new
    assert [a + b for a, b in zip(PROMPTS, found["texts"], strict=True)] == whole
    assert found["finish_reasons"] == ["length"] * 3
    assert found["tokens_per_s"] == pytest.approx(15 / found["seconds"])
    assert len(found) == 6


@pytest.mark.parametrize("columns", ["20", "200"])
def test_the_screen_shows_prompts_and_texts(
    columns: str, export: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are: no terminal is too narrow for a text that is only its own."""
    monkeypatch.setenv("COLUMNS", columns)
    words = [*_words(*PROMPTS), "--max-new-tokens", "30"]
    found = _json(capsys, export, *words)
    whole = [a + b for a, b in zip(PROMPTS, found["texts"], strict=True)]
    assert main(["generate", str(export), *words, "--batch-size", "2"]) == 0
    assert capsys.readouterr().out == "\n\n".join(whole) + "\n"


def test_a_file_has_a_prompt_in_each_line(
    export: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"the quick\r\n\nhome\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--max-new-tokens", "3"]
    found = _json(capsys, export, *words)
    assert found["prompts"] == ["the quick", "", "home"]
    assert (
        found["tokens"]
        == _json(capsys, export, *_words("the quick", "", "home"), *words[2:])["tokens"]
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\n".encode())))
    found = _json(capsys, export, "--prompt", "a", "--prompts", "-", "--max-new-tokens", "0")
    assert found["prompts"] == ["a", "é"]
    assert (found["texts"], found["tokens"]) == (["", ""], [[], []])
    assert found["finish_reasons"] == ["length"] * 2


def test_stop_strings_end_a_text(export: Path, capsys: Capture) -> None:
    words = [*_words(*PROMPTS), "--max-new-tokens", "40"]
    free = _json(capsys, export, *words)
    stop = free["texts"][0][6:9]  # random weights: letters across borders of tokens
    found = _json(capsys, export, *words, "--stop", stop, "--stop", "no text has this")
    for was, text, reason in zip(
        free["texts"], found["texts"], found["finish_reasons"], strict=True
    ):
        assert text == was.split(stop)[0]
        assert reason == ("stop" if stop in was else "length")
    assert found["finish_reasons"][0] == "stop"
    ended = len(found["tokens"][0])
    assert found["tokens"][0] == free["tokens"][0][:ended]
    assert ended < 40
    assert main(["generate", str(export), "--prompt", PROMPTS[0], "--stop", stop]) == 0
    assert capsys.readouterr().out == PROMPTS[0] + found["texts"][0] + "\n"


def test_ends_of_generation_config_count(export: Path, tmp_path: Path, capsys: Capture) -> None:
    """As for transformers, where they count in place of the config's."""
    free = _json(capsys, export, "--prompt", "home", "--max-new-tokens", "20")
    folder = shutil.copytree(export, tmp_path / "out")
    end = free["tokens"][0][4]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [399, end]}))
    found = _json(capsys, folder, "--prompt", "home", "--max-new-tokens", "20")
    assert found["finish_reasons"] == ["eos"]
    assert found["tokens"][0] == free["tokens"][0][: free["tokens"][0].index(end) + 1]
    assert free["texts"][0].startswith(found["texts"][0])
    for wrong in ("x", [2.5], True):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        assert main(["generate", str(folder), "--prompt", "home"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: eos_token_id is {wrong!r}\nwhere: {folder}")
        assert "remedy: write the id of a token, a list of such, or null" in error


def test_positions_are_the_end(export: Path, coder: Tokenizer, capsys: Capture) -> None:
    found = _json(capsys, export, *_words(*PROMPTS), "--max-new-tokens", "1000")
    for prompt, tokens, reason in zip(
        PROMPTS, found["tokens"], found["finish_reasons"], strict=True
    ):
        assert len(coder.encode(prompt, bos=True)) + len(tokens) <= 64
        assert reason == "eos" or len(coder.encode(prompt, bos=True)) + len(tokens) == 64
    config = small().config
    for rope, expected in (("default", 64), ("linear", 256), ("dynamic", 256)):
        keys = {"rope_type": rope, "rope_theta": 1e4}
        keys |= {} if rope == "default" else {"factor": 4.0}
        assert complete.positions(small(rope_parameters=keys).config) == expected
    assert complete.positions(config) == 64


def test_a_seed_gives_the_same_text(export: Path, capsys: Capture) -> None:
    words = ["--prompt", "home", "--temperature", "1", "--top-k", "50", "--top-p", "0.9"]
    first, again, other = (
        _json(capsys, export, *words, "--repetition-penalty", "1.1", "--seed", seed)["tokens"]
        for seed in "334"
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--prompt", "a", "--top-k", "0"], 2, "error: top-k is 0"),
        (["--prompt", "a", "--top-k", "x"], 2, "--top-k"),
        (["--prompt", "a", "--top-p", "0.9"], 2, "top-p does nothing at temperature 0"),
        (["--prompt", "a", "--temperature", "-1"], 2, "error: temperature is -1.0"),
        (["--prompt", "a", "--temperature", "1e-40"], 2, "error: temperature is 1e-40"),
        (["--prompt", "a", "--repetition-penalty", "0"], 2, "repetition-penalty is 0.0"),
        (["--prompt", "a", "--seed", "-1"], 2, "error: seed is -1"),
        (["--prompt", "a", "--max-new-tokens", "-1"], 2, "error: max-new-tokens is -1"),
        (["--prompt", "a", "--batch-size", "0"], 2, "error: batch-size is 0"),
        (["--prompt", "a", "--stop", ""], 2, "error: a stop string is empty"),
        (["--prompt", "a", "--tokenizer", "none"], 2, "error: there is no tokenizer at none"),
        (["--prompt", "a", "--chat"], 2, "error: the tokenizer has no chat template"),
        (["--prompt", "\udcff"], 2, r"error: a prompt is not UTF-8: '\udcff'"),
        (["--prompt", "the " * 62], 2, "error: a prompt has 64 tokens, which leaves none"),
        (["--prompts", "{}/model.safetensors"], 2, "error: the prompts cannot be read: 'utf-8'"),
        (["--prompts", "{}/none"], 2, "error: the prompts cannot be read: [Errno 2]"),
        ([], 2, "error: there is no prompt"),
    ],
    ids=str,
)
def test_mistakes_are_three_lines(
    export: Path, capsys: Capture, words: list[str], code: int, what: str
) -> None:
    assert main(["generate", str(export), *(word.format(export) for word in words)]) == code
    found = capsys.readouterr()
    assert what in found.err
    assert found.err.count("\n") == 3
    assert found.out == ""


def test_a_tokenizer_that_does_not_go_with_the_model(
    export: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = small(vocab_size=50).float()
    out = str(export_model(model, model.config, tmp_path / "out"))
    assert main(["generate", out, "--prompt", "a"]) == 2
    assert "does not say which tokenizer it was trained with" in capsys.readouterr().err
    assert main(["generate", out, "--prompt", "zebra", "--tokenizer", str(export)]) == 1
    assert "is outside the model's vocabulary of 50" in capsys.readouterr().err


def test_words_that_a_tokenizer_does_not_know(
    export: Path, tmp_path: Path, capsys: Capture
) -> None:
    """They are its unknown token for the model, and on the screen what was written."""
    words = {"<unk>": 0, "the": 1, "fox": 2, "ran": 3}
    model = WordLevel(vocab=words, unk_token="<unk>")
    pipeline = tokenizers.Tokenizer(model)
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pipeline.save(str(tmp_path / "tokenizer.json"))
    settings = ["--tokenizer", str(tmp_path), "--max-new-tokens", "4"]
    found = _json(capsys, export, *_words("the zebra", "the <unk>"), *settings)
    assert found["prompts"] == ["the zebra", "the <unk>"]
    assert max(found["tokens"][0]) <= 3
    assert main(["generate", str(export), "--prompt", "the zebra", *settings]) == 0
    assert capsys.readouterr().out == "the zebra" + found["texts"][0] + "\n"
    assert main(["generate", str(export), "--prompt", "", *settings]) == 2
    assert "error: a prompt has no tokens" in capsys.readouterr().err


def test_ctrl_c_ends_quietly(
    export: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, pushed = TextStream.push, []

    def interrupted(self: TextStream, token: int) -> str:
        pushed.append(token)
        if len(pushed) == 4:
            signal.raise_signal(signal.SIGINT)
        return push(self, token)

    monkeypatch.setattr(TextStream, "push", interrupted)
    assert main(["generate", str(export), "--prompt", "the quick"]) == 130
    found = capsys.readouterr()
    assert found.err == ""
    assert found.out.startswith("the quick")
    assert found.out.endswith("\n")
    pushed.clear()
    assert main(["generate", str(export), "--prompt", "the quick", "--json"]) == 130
    assert capsys.readouterr().out == ""


def test_a_reader_that_leaves_ends_it(
    export: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `head` does: quietly, with the exit code of SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    closed = os.fdopen(writing, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", closed)
    assert main(["generate", str(export), "--prompt", "the quick"]) == 141
    assert capsys.readouterr().err == ""
    with pytest.raises(BrokenPipeError):
        closed.close()


def test_the_screen_shows_each_piece_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a pipe too; the text that comes second waits for the first."""
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w", encoding="utf-8"))
    screen = Screen(["one", "two"])
    for row, piece, last, expected in (
        (1, "x", False, None),
        (0, " é", False, "one é"),
        (0, "b", False, "b"),
        (1, "y", True, None),
        (0, "c", True, "c\n\ntwoxy\n"),
    ):
        screen(row, piece, last)
        if expected is not None:
            assert os.read(reading, 100).decode() == expected
    screen.break_off()
    sys.stdout.close()
    assert os.read(reading, 100) == b""
    os.close(reading)
