"""`ds-llama data prepare --format`: shards with their masks, and what is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ds_llama.cli.data import Format
from ds_llama.cli.main import main
from ds_llama.data.chat import FORMATS, ChatEncoder
from ds_llama.data.masks import open_mask
from ds_llama.data.prepare import prepare
from ds_llama.data.shards import Shard
from tests.unit.data.chat.conftest import drawn

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "the step"}
CHAT = {"messages": [USER, ANSWER]}
RECORDS: list[dict[str, Any]] = [
    CHAT,
    {"instruction": "model", "output": "shard"},
    {"prompt": "loss", "completion": " 12"},
    {"prompt": "rank", "choices": ["no", "yes"], "answer": 1},
    {"text": "no record"},
    {"messages": [USER]},
    {"conversations": [{"from": "human", "value": "def"}, {"from": "gpt", "value": "return"}]},
]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def call(records: Path, tokenizer: Path, *more: str) -> list[str]:
    where = ["--tokenizer", str(tokenizer), "--out", str(records.with_name("out"))]
    return ["data", "prepare", str(records), *where, "--validation", "0", "--workers", "1", *more]


def test_records_become_a_shard_and_its_mask(
    records: Path, tokenizers_at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tokenizers_at / "llama-2"
    words = call(records, folder, "--format", "chat", "--chat-template", "llama-2")
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "5 documents, 2 bad records" in out
    assert "bad records (1 no turn of the assistant to learn, 1 of no known form)" in err
    shard = Shard(records.with_name("out") / "train")
    mask = open_mask(shard)
    assert mask is not None
    texts = [drawn(folder, shard[i].tolist(), mask[i].tolist()) for i in range(len(shard))]
    assert texts == [
        "<s> [INST] a [/INST]⟦ the step </s>⟧",
        "<s> [INST] model [/INST]⟦ shard </s>⟧",
        "<s> loss⟦ 12</s>⟧",
        "<s> rank⟦ yes</s>⟧",
        "<s> [INST] def [/INST]⟦ return </s>⟧",
    ]
    rejects = (records.with_name("out") / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["where"][-2:] for line in rejects] == [":5", ":6"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("nothing has changed, kept")
    assert main([*words[:-1], "alpaca"]) == 0
    assert not capsys.readouterr().out.startswith("nothing has changed"), "another template"


def test_one_form_is_insisted_on(
    records: Path, tokenizers_at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(call(records, tokenizers_at / "llama-2", "--format", "rows", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "rows"
    assert found["shards"]["train"]["documents"] == 1
    assert set(found["shards"]["train"]["files"]) == {
        *("train.bin", "train.idx", "train-mask.bin", "train-mask.idx")
    }


def test_bytes_do_not_depend_on_workers(tmp_path: Path, tokenizers_at: Path) -> None:
    path = tmp_path / "many.jsonl"
    lines = (json.dumps({"prompt": f"rank {i}", "completion": f" step {i}"}) for i in range(400))
    path.write_text("\n".join(lines))
    folder = tokenizers_at / "llama-3"
    manifests = [
        prepare(
            [path],
            folder,
            tmp_path / str(workers),
            workers=workers,
            validation_fraction=0.2,
            format="chat",
        ).manifest["shards"]
        for workers in (1, 2)
    ]
    assert manifests[0] == manifests[1]
    assert "validation-mask.bin" in manifests[0]["validation"]["files"]


def test_added_tokens_are_in_the_shards_vocabulary(
    tokenizers_at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tokenizer.model does not know those that tokenizer.json adds."""
    folder = tokenizers_at / "chatml"
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(CHAT))
    done = prepare([path], folder, tmp_path / "out", format="chat", chat_template="chatml")
    assert done.manifest["chat_sha256"]
    encoder = ChatEncoder(folder, "chatml")
    assert Shard(tmp_path / "out/train").largest_id() == encoder.vocab_size - 1
    assert main(["data", "inspect", str(tmp_path / "out/train"), "--tokenizer", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"\n{sum(encoder.encode(CHAT).mask or ())} tokens are learnt, " in out
    assert "the step" in out


def test_mistakes_in_the_call(
    records: Path, tokenizers_at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tokenizers_at / "llama-2"
    assert main(call(records, folder, "--chat-template", "llama-2")) == 2
    assert "a chat template has nothing to say of plain text" in capsys.readouterr().err
    assert main(call(records, folder, "--format", "chat")) == 2
    assert "the records are chats, and the tokenizer has no chat" in capsys.readouterr().err
    assert [form.value for form in Format] == ["text", *FORMATS]


def test_chats_import_neither_torch_nor_transformers(tokenizers_at: Path, records: Path) -> None:
    code = (
        "import sys; from ds_llama.data.prepare import prepare; prepare([sys.argv[1]], "
        "*sys.argv[2:], format='chat', chat_template='llama-2'); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    paths = [str(records), str(tokenizers_at / "llama-2"), str(records.with_name("out"))]
    call = [sys.executable, "-c", code, *paths]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
