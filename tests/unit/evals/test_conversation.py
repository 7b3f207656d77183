"""`ds-llama generate --chat` on standard input: what was said counts, as transformers sees it."""

from __future__ import annotations

import builtins
import io
import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from ds_llama.cli.main import main
from ds_llama.data.tokenizer import train_tokenizer
from ds_llama.weights.export import export_model
from tests.unit.evals.models import small
from tests.unit.evals.test_chat import TEMPLATE, _edit

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversation")
    (folder / "text.txt").write_text("[user] hello, what is a fox? [assistant] it jumps\n" * 40)
    train_tokenizer([folder / "text.txt"], folder / "tokenizer", vocab_size=300)
    _edit(folder / "tokenizer", chat_template=TEMPLATE)
    model = small(vocab_size=300, eos_token_id=2, max_position_embeddings=128).float()
    return export_model(model, model.config, folder / "out", tokenizer=folder / "tokenizer")


def said(patch: Patch, content: bytes) -> None:
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def run(capsys: Capture, export: Path, *words: str, code: int = 0) -> tuple[str, str]:
    assert main(["generate", str(export), "--chat", *words, "--max-new-tokens", "12"]) == code
    found = capsys.readouterr()
    return found.out, found.err


def by_transformers(export: Path, messages: list[tuple[str, str]]) -> list[int]:
    model = transformers.LlamaForCausalLM.from_pretrained(export)
    ids = transformers.AutoTokenizer.from_pretrained(export).apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    new = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    return new[0, ids["input_ids"].shape[1] :].tolist()


def test_what_was_said_counts(export: Path, capsys: Capture, monkeypatch: Patch) -> None:
    said(monkeypatch, "hello\r\n \n\nwas ist ein Fuchs é\n".encode())
    document, _ = run(capsys, export, "--json", "--system", "be brief")
    found = json.loads(document)
    before: list[tuple[str, str]] = [("system", "be brief")]
    assert found["prompts"] == ["hello", "was ist ein Fuchs é"]
    for message, answer, tokens in zip(
        found["prompts"], found["texts"], found["tokens"], strict=True
    ):
        before.append(("user", message))
        assert tokens == by_transformers(export, before)
        before.append(("assistant", answer))
    # the twins: without what was said before, and without the system message, it is another text
    assert found["tokens"][1] != by_transformers(export, [before[0], before[3]])
    assert found["tokens"][0] != by_transformers(export, before[1:2])


def test_answers_alone_are_in_a_pipe(export: Path, capsys: Capture, monkeypatch: Patch) -> None:
    words = ["--temperature", "1", "--seed", "3"]
    said(monkeypatch, b"hello\nhello")
    texts = json.loads(run(capsys, export, *words, "--json")[0])["texts"]
    said(monkeypatch, b"hello\nhello\n")
    assert run(capsys, export, *words) == (f"{texts[0]}\n\n{texts[1]}\n", "")
    assert texts[0] != texts[1]
    said(monkeypatch, b"")
    assert run(capsys, export) == ("", "")
    assert json.loads(run(capsys, export, "--json")[0])["texts"] == []
    said(monkeypatch, b"hello\n\xff\n")
    assert "error: a message is not UTF-8" in run(capsys, export, code=2)[1]


def test_the_oldest_is_forgotten(export: Path, capsys: Capture, monkeypatch: Patch) -> None:
    lines = ["hello what is a fox? " * 3, "what " * 9, "fox"]
    said(monkeypatch, "\n".join(lines).encode())
    document, notes = run(capsys, export, "--json")
    found = json.loads(document)
    assert "note: the oldest messages are forgotten: the model has 128 positions" in notes
    kept = [("user", lines[1]), ("assistant", found["texts"][1]), ("user", lines[2])]
    assert found["tokens"][2] == by_transformers(export, kept)
    said(monkeypatch, b"hello " * 200)
    assert "which leaves none of the model's 128 positions" in run(capsys, export, code=2)[1]


def test_a_terminal_asks_until_ctrl_d(export: Path, capsys: Capture, monkeypatch: Patch) -> None:
    master, slave = pty.openpty()
    os.write(master, b"hello\n\nwhat\n\x04")
    monkeypatch.setattr(sys, "stdin", os.fdopen(slave, encoding="utf-8"))
    out, err = run(capsys, export)
    sys.stdin.close()
    os.close(master)
    assert err == "> " * 4 + "\n", "stdout is no terminal, so it has the answers only"
    said(monkeypatch, b"hello\nwhat\n")
    assert out.split() == run(capsys, export)[0].split()


def test_ctrl_c_at_the_prompt(export: Path, capsys: Capture, monkeypatch: Patch) -> None:
    def interrupted(prompt: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "input", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    out, err = run(capsys, export, code=130)
    assert out == ""
    assert err.split() == [">"]


def test_a_template_without_a_system_message(
    export: Path, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    words = ["--prompt", "hello", "--system", "be brief"]
    assert main(["generate", str(export), *words]) == 2
    assert "error: --system is for --chat" in capsys.readouterr().err
    for path in export.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    _edit(
        tmp_path,
        chat_template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    )
    _, err = run(capsys, tmp_path, *words, code=2)
    assert "error: the chat template has no place for a system message" in err
    assert "remedy: leave --system out" in err
