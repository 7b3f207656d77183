from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ds_llama.cli.main import main
from ds_llama.data.shards import ShardWriter
from tests.unit.data.conftest import sentences


@pytest.fixture
def shards(tmp_path: Path, tokenizer_folder: Path) -> Path:
    (tmp_path / "a.py").write_text("\n".join(sentences(50)), "utf-8")
    (tmp_path / "skip").mkdir()
    (tmp_path / "skip/b.py").write_text("not me")
    assert prepare(tmp_path, tokenizer_folder) == 0
    return tmp_path / "out"


def prepare(folder: Path, tokenizer_folder: Path, *more: str) -> int:
    common = ["--suffix", "py", "--exclude", "skip", "--out", str(folder / "out"), "--workers", "1"]
    tokenizer = ["--tokenizer", str(tokenizer_folder), "--validation", "0"]
    return main(["data", "prepare", str(folder), *tokenizer, *common, *more])


def test_tokenizer_command_trains_then_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(sentences(200)), "utf-8")
    call = ["data", "tokenizer", str(tmp_path), "--out", str(tmp_path / "t"), "--vocab-size", "320"]
    assert main(call) == 0
    out, err = capsys.readouterr()
    assert out == f"wrote {tmp_path / 't/tokenizer.model'}\n"
    assert "training 320 pieces on 200 lines" in err
    assert main(call) == 0
    assert capsys.readouterr().out.startswith("nothing has changed, kept")


def test_prepare_prints_counts(
    shards: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(shards.parent, tokenizer_folder, "--force") == 0
    out = capsys.readouterr().out
    assert "read 1 files" in out
    assert f"{shards / 'train'}: 1 documents" in out
    assert prepare(shards.parent, tokenizer_folder) == 0
    assert capsys.readouterr().out.startswith(f"nothing has changed, kept {shards}")


def test_prepare_json_is_one_document(
    shards: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert prepare(shards.parent, tokenizer_folder, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["skipped"] is True
    assert printed["shards"]["train"]["documents"] == 1


def test_inspect_shows_counts_lengths_and_text(
    shards: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    call = ["data", "inspect", str(shards / "train"), "--tokenizer", str(tokenizer_folder)]
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "1 documents" in out
    assert "tokens per document: mean" in out
    assert sentences(1)[0] in out
    assert main([*call, "--json", "--samples", "1", "--tokens", "5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["documents"] == 1
    assert printed["id_type"] == "uint16"
    assert len(printed["samples"]) == 1


def test_histogram_counts_every_sequence_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [0, 1, 2, 3, 4, 7, 8, 8, 100]
    with ShardWriter(tmp_path / "x", vocab_size=10) as writer:
        writer.add_many(np.ones(sum(sizes), np.int64), np.array(sizes))
    assert main(["data", "inspect", str(tmp_path / "x"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["histogram"]
    assert [(r["from"], r["below"], r["sequences"]) for r in rows] == [
        (0, 1, 1),
        (1, 2, 1),
        (2, 4, 2),
        (4, 8, 2),
        (8, 16, 2),
        (64, 128, 1),
    ]


def test_inspect_of_an_empty_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path / "x", vocab_size=10):
        pass
    assert main(["data", "inspect", str(tmp_path / "x")]) == 0
    assert "0 documents, 0 tokens" in capsys.readouterr().out


def test_inspect_with_a_foreign_tokenizer_names_both_sizes(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(tmp_path / "x", vocab_size=1000) as writer:
        writer.add([999])
    call = ["data", "inspect", str(tmp_path / "x"), "--tokenizer", str(tokenizer_folder)]
    assert main(call) == 1
    err = capsys.readouterr().err
    assert "error: the shard holds token id 999, the tokenizer has 420 pieces" in err
    assert f"where: {tmp_path / 'x.bin'}" in err
    assert "remedy: name the tokenizer that the shard was prepared with" in err


def test_errors_keep_stdout_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(tmp_path / "nothing"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: there is no token shard ")
    assert "remedy: name a shard by its path without .bin and .idx" in err
    assert main(["data", "prepare", "--out", str(tmp_path)]) == 2


def test_help_imports_neither_torch_nor_sentencepiece() -> None:
    code = (
        "import sys; from ds_llama.cli.main import main; main(['data', '--help']); "
        "print([m for m in ('torch', 'sentencepiece', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_tokenizing_imports_neither_torch_nor_transformers(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    (tmp_path / "a.txt").write_text("def loss")
    code = (
        "import sys; from ds_llama.data.prepare import prepare; prepare(*sys.argv[1:]); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    call = [sys.executable, "-c", code.replace("*sys.argv[1:]", "[sys.argv[1]], *sys.argv[2:]")]
    paths = [str(tmp_path / "a.txt"), str(tokenizer_folder), str(tmp_path / "out")]
    done = subprocess.run([*call, *paths], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def with_bad(folder: Path) -> Path:
    lines = ['{"text": "def loss"}', "{", '{"text": ""}', '{"text": "a longer text than it"}']
    (folder / "a.jsonl").write_text("\n".join(lines * 3))
    return folder / "a.jsonl"


def test_bad_records_are_shown_on_stderr(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = with_bad(tmp_path), tmp_path / "out"
    call = ["data", "prepare", str(corpus), "--tokenizer", str(tokenizer_folder)]
    call += ["--out", str(out), "--workers", "1", "--validation", "0"]
    assert main([*call, "--max-document-bytes", "10", "--deduplicate"]) == 0
    printed, err = capsys.readouterr()
    assert printed.startswith("read 1 files, 209 B: 1 documents, 2 duplicates, 9 bad records\n")
    lines = err.splitlines()
    assert lines[0] == (
        f"bad records (3 empty, 3 not JSON, 3 too long), all in {out / 'rejects.jsonl'}:"
    )
    assert lines[1].startswith(f"  {corpus}:2: not JSON")
    assert lines[2] == f"  {corpus}:3: empty"
    assert lines[3] == f"  {corpus}:4: too long: 21 bytes, 10 are allowed"
    assert lines[6:] == ["  and 4 more"]
    assert main([*call, "--json"]) == 0
    printed, err = capsys.readouterr()
    assert json.loads(printed)["input"]["bad"] == {"empty": 3, "not JSON": 3}
    assert err.startswith("bad records (3 empty, 3 not JSON)")


def test_limits_are_errors_of_content_or_of_the_call(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["data", "prepare", str(with_bad(tmp_path)), "--tokenizer", str(tokenizer_folder)]
    call += ["--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*call, "--max-bad", "5"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: 6 of 12 records are bad (3 empty, 3 not JSON), more than 5;")
    assert f"where: {tmp_path / 'out/.preparing/rejects.jsonl'}\n" in err
    assert main([*call, "--max-bad", "some"]) == 2
    assert "error: 'some' is no limit for bad records" in capsys.readouterr().err
    assert main([*call, "--max-document-bytes", "1M"]) == 2
    assert "where: --max-document-bytes" in capsys.readouterr().err
