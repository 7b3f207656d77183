"""Records that are no documents, and documents that are there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_llama.data.limit import parse_limit
from ds_llama.data.prepare import prepare
from ds_llama.data.shards import Shard
from ds_llama.data.tokenizer import Tokenizer
from ds_llama.errors import CallError, DataError
from tests.unit.data.conftest import contents, sentences

BAD = {
    3: ("{broken" + "x" * 5000, "not JSON"),
    5: ('{"body": "x"}', 'no field "text"'),
    6: ('{"text": ""}', "empty"),
    7: ('{"text": 5}', 'field "text" is not a string but int'),
    11: (json.dumps({"text": "long " * 500}), "too long"),
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 JSON lines, five of them bad, the text of each good one there twice."""
    good = [json.dumps({"text": f"{i} {text}"}) for i, text in enumerate(sentences(20))] * 2
    lines = [BAD[i][0] if i in BAD else line for i, line in enumerate(good, 1)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    return tmp_path / "a.jsonl"


def run(corpus: Path, tokenizer: Tokenizer, name: str, **options: Any) -> dict[str, Any]:
    common = {"validation_fraction": 0.0, "max_document_bytes": 1000}
    done = prepare([corpus], tokenizer.path, corpus.parent / name, **{**common, **options})
    return done.manifest


def test_bad_records_are_counted_by_kind_and_kept(corpus: Path, tokenizer: Tokenizer) -> None:
    manifest = run(corpus, tokenizer, "out")
    assert manifest["input"]["bad"] == {kind: 1 for _, kind in BAD.values()}
    lines = (corpus.parent / "out/rejects.jsonl").read_text("utf-8").splitlines()
    kept = [json.loads(line) for line in lines]
    assert [line["where"] for line in kept] == [f"{corpus}:{number}" for number in BAD]
    # Of a record that can be read it is the text that is kept, and of none more than so much.
    shown = {"empty": "", "too long": "long " * 400}
    for line, (raw, kind) in zip(kept, BAD.values(), strict=True):
        assert line["problem"].startswith(kind)
        assert line["raw"] == shown.get(kind, raw[:2000])
    assert kept[-1]["problem"] == "too long: 2500 bytes, 1000 are allowed"
    assert Shard(corpus.parent / "out/train").num_documents == 35


def test_the_length_is_that_of_utf8(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("日本" * 4, "utf-8")
    (tmp_path / "b.txt").write_text("x" * 24, "utf-8")
    for most, bad in ((24, {}), (23, {"too long": 2})):
        call = [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"]
        (tmp_path / "c.txt").write_text("short")
        done = prepare(call, tokenizer.path, tmp_path / "out", max_document_bytes=most)
        assert done.manifest["input"]["bad"] == bad


@pytest.mark.parametrize("limit", [4, "4", "12%"])
def test_too_many_bad_records_stop_it(corpus: Path, tokenizer: Tokenizer, limit: str | int) -> None:
    run(corpus, tokenizer, "out", eos=False)
    before = contents(corpus.parent / "out")
    with pytest.raises(DataError) as caught:
        run(corpus, tokenizer, "out", max_bad=limit)
    assert caught.value.what.startswith("5 of 40 records are bad (1 empty, 1 field")
    assert f"more than {limit}; the first: {corpus}:3: not JSON" in caught.value.what
    assert "larger --max-bad" in caught.value.remedy
    kept = Path(caught.value.where)
    assert len(kept.read_text("utf-8").splitlines()) == 5
    assert contents(corpus.parent / "out") == before
    assert run(corpus, tokenizer, "out", max_bad="13%")["input"]["documents"] == 35
    assert not kept.exists()


def test_a_share_is_judged_when_it_says_something(corpus: Path, tokenizer: Tokenizer) -> None:
    lines = corpus.read_text("utf-8").splitlines()
    corpus.write_text("\n".join([*lines, *[lines[0]] * 500]), "utf-8")
    assert run(corpus, tokenizer, "out", max_bad="1%")["input"]["documents"] == 535


def test_limits_that_mean_something() -> None:
    assert parse_limit(None) is None
    of_all, ten = parse_limit("1%"), parse_limit(10)
    assert of_all is not None
    assert ten is not None
    assert not of_all.is_passed(999, 999, ended=False)
    assert of_all.is_passed(11, 1000, ended=False)
    assert not of_all.is_passed(10, 1000, ended=True)
    assert of_all.is_passed(1, 2, ended=True)
    assert ten.is_passed(11, 11, ended=False)
    assert not ten.is_passed(10, 10, ended=True)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "-1%", "101%", "nan%", "%"])
def test_limits_that_mean_nothing(text: str) -> None:
    with pytest.raises(CallError) as caught:
        parse_limit(text)
    assert caught.value.what == f"{text!r} is no limit for bad records"
    assert caught.value.remedy.endswith("such as 100, or a share of them such as 1%")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_of_equal_documents_is_kept(
    corpus: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("ds_llama.data.reading._BATCH_CHARACTERS", 300)
    manifest = run(corpus, tokenizer, "out", deduplicate=True, workers=workers)
    read, shard = manifest["input"], Shard(corpus.parent / "out/train")
    # Of the 20 texts the five at a bad line's place are there once, all others twice.
    assert (read["documents"], read["duplicates"]) == (20, 15)
    lines = corpus.read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for i, line in enumerate(lines, 1) if i not in BAD]
    expected = [tokenizer.encode(text, bos=True, eos=True) for text in dict.fromkeys(texts)]
    assert [shard[i].tolist() for i in range(len(shard))] == expected
    assert run(corpus, tokenizer, "out")["input"]["duplicates"] == 0
