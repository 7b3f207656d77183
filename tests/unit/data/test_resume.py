"""A prepare that was ended anywhere, and called again: the bytes of one that was not."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ds_llama.data.prepare import Progress, prepare, share_done
from ds_llama.data.tokenizer import Tokenizer
from ds_llama.errors import DataError
from tests.unit.data.conftest import contents, sentences


class Killed(BaseException):
    """Nothing catches it, and nothing that follows reaches the disk."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, JSON lines and gzip, with bad records and with documents that are there twice."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": text}) for text in [*sentences(30, 1), *sentences(30, 1)]]
    lines[5], lines[40] = "{", '{"text": ""}'
    (folder / "a.txt").write_text("\n".join(sentences(10)), "utf-8")
    (folder / "b.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[::-1]).encode()))
    (folder / "d.txt").write_text("the last one", "utf-8")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of a few records, and each in the journal; a killed process needs no fsync."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("ds_llama.data.reading._BATCH_CHARACTERS", 2500)
    monkeypatch.setattr("ds_llama.data.output._JOURNAL_EVERY_S", 0.0)


def run(corpus: Path, tokenizer: Tokenizer, out: Path, **options: Any) -> dict[str, Any]:
    common = {"validation_fraction": 0.3, "deduplicate": True}
    return prepare([corpus], tokenizer.path, out, **{**common, **options}).manifest


@pytest.fixture
def whole(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> dict[str, bytes]:
    """What comes of it in one go."""
    run(corpus, tokenizer, tmp_path / "whole")
    return contents(tmp_path / "whole")


@contextmanager
def dead_from(call: int) -> Iterator[list[str]]:
    """The disk hears no more from call number `call` on; gives the calls that it heard."""
    heard: list[str] = []
    with pytest.MonkeyPatch.context() as patch:

        def stand_in(name: str) -> Any:
            real = getattr(os, name)

            def act(*given: Any, **options: Any) -> Any:
                if len(heard) >= call:
                    raise Killed
                heard.append(name)
                return real(*given, **options)

            return act

        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, stand_in(name))
        yield heard


def test_killed_before_any_call_to_the_disk(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    taken_up = []
    for call in range(1000):
        out = tmp_path / f"{call}"
        out.mkdir()
        try:
            with dead_from(call):
                run(corpus, tokenizer, out)
        except Killed:
            found = contents(out)
            assert "manifest.json" not in found or found == whole
            taken_up.append(share_done(out) or 0)
            run(corpus, tokenizer, out)
            assert contents(out) == whole
            assert not (out / ".preparing").exists()
        else:
            break
    assert len(taken_up) > 50
    assert len({share for share in taken_up if 0 < share < 1}) >= 3
    assert taken_up.count(1) > 5


def test_the_former_result_stays_until_the_new_one_is_whole(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    run(corpus, tokenizer, out, eos=False)
    former, states = contents(out), set()
    for call in range(20, 200, 7):
        try:
            with dead_from(call):
                run(corpus, tokenizer, out)
        except Killed:
            found = contents(out)
            state = "former" if found == former else "new" if found == whole else "between"
            # Between the two nothing vouches for anything.
            assert state != "between" or "manifest.json" not in found
            states.add(state)
        else:
            break
    assert "former" in states
    assert contents(out) == whole


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_the_number_of_workers_may_change(
    corpus: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    whole: dict[str, bytes],
    before: int,
    after: int,
) -> None:
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tokenizer, tmp_path / "out", workers=before, progress=stop)
    share = share_done(tmp_path / "out")
    assert share is not None
    assert 0 < share < 1
    assert contents(tmp_path / "out") == {}
    seen.clear()
    run(corpus, tokenizer, tmp_path / "out", workers=after, progress=seen.append)
    assert contents(tmp_path / "out") == whole
    assert seen[0].bytes_before == round(share * seen[0].bytes_total) > 0
    assert share_done(tmp_path / "out") is None


def stopped(corpus: Path, tokenizer: Tokenizer, out: Path, **options: Any) -> None:
    def stop(progress: Progress) -> None:
        if progress.documents > 30:
            raise Killed

    with pytest.raises(Killed):
        run(corpus, tokenizer, out, progress=stop, **options)


def first(corpus: Path, tokenizer: Tokenizer, out: Path, **options: Any) -> Progress:
    seen: list[Progress] = []
    run(corpus, tokenizer, out, progress=seen.append, **options)
    return seen[0]


def test_nothing_is_lost_between_two_journals(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be unwound writes a last journal; the rest of the batches is not done again."""
    monkeypatch.setattr("ds_llama.data.output._JOURNAL_EVERY_S", 1e9)
    stopped(corpus, tokenizer, tmp_path / "out")
    assert first(corpus, tokenizer, tmp_path / "out").documents > 30


def test_another_call_begins_anew(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    stopped(corpus, tokenizer, tmp_path / "out", eos=False)
    assert first(corpus, tokenizer, tmp_path / "out").bytes_before == 0
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(
    "name", ["train.bin.partial", "train.idx.partial", "rejects.jsonl", "digests", "journal.json"]
)
@pytest.mark.parametrize("change", ["cut", "changed", "gone"])
def test_what_somebody_changed_is_not_gone_on_with(
    corpus: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    whole: dict[str, bytes],
    name: str,
    change: str,
) -> None:
    stopped(corpus, tokenizer, tmp_path / "out")
    file = tmp_path / "out/.preparing" / name
    raw = file.read_bytes()
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(raw[:-1] if change == "cut" else raw[:40] + b"\x07" + raw[41:])
    run(corpus, tokenizer, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_a_limit_that_is_raised_goes_on(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with pytest.raises(DataError, match="more than 1; the first"):
        run(corpus, tokenizer, tmp_path / "out", max_bad=1)
    assert first(corpus, tokenizer, tmp_path / "out", max_bad=10).bytes_before > 0
    assert contents(tmp_path / "out") == whole
