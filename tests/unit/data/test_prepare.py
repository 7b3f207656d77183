from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from ds_llama.data.encoding import in_validation
from ds_llama.data.prepare import Progress, prepare, share_done
from ds_llama.data.shards import Shard
from ds_llama.data.tokenizer import Tokenizer
from ds_llama.errors import CallError, DataError, RunError
from tests.unit.data.conftest import contents, sentences


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three text files, an empty one, and JSON lines of which two are broken."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text("\n".join(sentences(40, ord(name))), "utf-8")
    (folder / "empty.txt").touch()
    lines = [json.dumps({"text": line}) for line in sentences(400, 7)]
    lines[10], lines[20] = "{", "[]"
    (folder / "d.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def documents(corpus: Path) -> list[str]:
    """What `prepare` should see, in order, by other means."""
    lines = (corpus / "d.jsonl").read_text("utf-8").split("\n")
    parsed = [json.loads(line)["text"] for i, line in enumerate(lines) if i not in (10, 20)]
    texts = [(corpus / f"{name}.txt").read_text("utf-8") for name in "abc"]
    return [text for text in texts + parsed if text]


def test_documents_become_ids_between_bos_and_eos(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    done = prepare([corpus], tokenizer.path, tmp_path / "out", validation_fraction=0.3)
    texts = documents(corpus)
    for name, wanted in (("train", False), ("validation", True)):
        shard = Shard(tmp_path / "out" / name)
        expected = [
            tokenizer.encode(text, bos=True, eos=True)
            for text in texts
            if in_validation(text, 0.3) == wanted
        ]
        assert [shard[i].tolist() for i in range(len(shard))] == expected
        assert done.manifest["shards"][name]["documents"] == len(expected)
        assert done.manifest["shards"][name]["tokens"] == sum(map(len, expected))
    assert not done.skipped


def test_manifest_counts_and_hashes(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    done = prepare([corpus], tokenizer.path, tmp_path / "out")
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == done.manifest
    read = done.manifest["input"]
    bad = {"empty": 1, "not JSON": 1, "not a JSON object but list": 1}
    assert (read["files"], read["bad"], read["duplicates"]) == (5, bad, 0)
    assert read["documents"] == len(documents(corpus))
    assert read["bytes"] == sum(p.stat().st_size for p in corpus.iterdir())
    assert read["first_bad"][0].startswith(f"{corpus / 'd.jsonl'}:11: not JSON")
    assert read["first_bad"][1] == f"{corpus / 'd.jsonl'}:21: not a JSON object but list"
    assert read["first_bad"][2] == f"{corpus / 'empty.txt'}: empty"
    assert done.manifest["tokenizer"]["sha256"] == tokenizer.sha256
    parts = [*done.manifest["shards"].values(), done.manifest["rejects"]]
    files = [entry for part in parts for entry in part["files"].items()]
    assert len(files) == 5
    for name, entry in files:
        raw = (tmp_path / "out" / name).read_bytes()
        assert entry == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def test_bytes_do_not_depend_on_the_workers(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ds_llama.data.reading._BATCH_CHARACTERS", 300)
    for workers in (1, 3):
        prepare([corpus], tokenizer.path, tmp_path / f"{workers}", workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert len(contents(tmp_path / "1")) == 6


def test_policies(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    done = prepare(
        [corpus], tokenizer.path, tmp_path / "o", validation_fraction=0, bos=False, eos=False
    )
    assert Shard(tmp_path / "o/train")[0].tolist() == tokenizer.encode(documents(corpus)[0])
    assert list(done.manifest["shards"]) == ["train"]
    assert not (tmp_path / "o/validation.idx").exists()


def test_the_split_follows_the_fraction_and_the_text() -> None:
    texts = [f"document {i}" for i in range(20_000)]
    held = [text for text in texts if in_validation(text, 0.1)]
    assert 1800 < len(held) < 2200  # 2000 expected, deviation 42
    assert all(in_validation(text, 0.2) for text in held)
    assert not any(in_validation(text, 0.0) for text in texts)


def test_a_second_prepare_is_skipped_until_something_changes(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def again(**changes: object) -> bool:
        return prepare([corpus], tokenizer.path, out, **changes).skipped  # type: ignore[arg-type]

    assert not again()
    before = contents(out)
    assert again()
    assert again(workers=2)
    assert contents(out) == before
    assert not again(force=True)
    assert contents(out) == before
    assert not again(eos=False)
    assert not again()
    assert contents(out) == before
    (out / "train.bin").write_bytes(before["train.bin"][:-2])
    assert not again()
    (out / "manifest.json").write_text("{}")
    assert not again()
    (corpus / "e.txt").write_text("one more")
    assert not again()
    assert not again(validation_fraction=0)
    assert not (out / "validation.bin").exists()


def test_progress_ends_at_the_end(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    done = prepare([corpus], tokenizer.path, tmp_path / "out", progress=seen.append)
    assert seen[-1].bytes_done == seen[-1].bytes_total == done.manifest["input"]["bytes"]
    assert seen[-1].documents == done.manifest["input"]["documents"]
    assert seen[-1].tokens == sum(s["tokens"] for s in done.manifest["shards"].values())


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_outside_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(CallError, match=f"a validation fraction of {fraction}"):
        prepare([tmp_path], "unused", tmp_path, validation_fraction=fraction)


def test_a_corpus_without_text_says_what_was_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"text": ""}\n')
    with pytest.raises(DataError) as caught:
        prepare([tmp_path / "a.jsonl"], tokenizer.path, tmp_path / "out")
    assert "no text: 1 files, 2 bad records (1 empty, 1 no field" in caught.value.what
    assert 'a.jsonl:1: no field "text"; it has body' in caught.value.what
    assert "--text-field" in caught.value.remedy
    assert contents(tmp_path / "out") == {}


def test_a_failure_keeps_what_was_there(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare([corpus], tokenizer.path, tmp_path / "out")
    before = contents(tmp_path / "out")
    (corpus / "z.jsonl.gz").write_bytes(b"\x1f\x8b not really")
    with pytest.raises(DataError, match="gzip file is damaged"):
        prepare([corpus], tokenizer.path, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_second_prepare_at_the_same_time_is_refused(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError) as caught:
            prepare([corpus], tokenizer.path, tmp_path)
    assert caught.value.what == "another prepare is writing here"
    assert caught.value.where == str(tmp_path)


def test_a_worker_that_dies_is_an_error(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing

    (tmp_path / "a.jsonl").write_text('{"text": "def loss"}\n' * 20_000)
    monkeypatch.setattr("ds_llama.data.reading._BATCH_CHARACTERS", 1000)

    def kill_a_worker(progress: Progress) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        time.sleep(0.05)

    with pytest.raises(RunError) as caught:
        prepare(
            [tmp_path / "a.jsonl"],
            tokenizer.path,
            tmp_path / "out",
            workers=2,
            progress=kill_a_worker,
        )
    assert caught.value.what == "a tokenizing process died"
    assert "--workers" in caught.value.remedy
    assert "the same call goes on where this one ended" in caught.value.remedy
    assert contents(tmp_path / "out") == {}
    assert share_done(tmp_path / "out")
