"""Llama 3's tokenizer.model, against ids of tiktoken itself (tests/scripts/tiktoken_ids.py)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from ds_llama.data import tokenizer_tiktoken as tiktoken
from ds_llama.data.tokenizer import TiktokenTokenizer, load_tokenizer
from ds_llama.errors import DataError

FOLDER = Path(__file__).parent / "tiktoken"
BASE = 500  # tokens in the list; control tokens follow


def known() -> dict[str, list[int]]:
    return json.loads((FOLDER / "ids.json").read_text())["ids"]


def test_ids_are_tiktokens_and_text_comes_back() -> None:
    tokenizer = load_tokenizer(FOLDER)
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (BASE + 256, BASE)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (BASE + 1, None)
    assert len(known()) >= 48
    for text, ids in known().items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a", bos=True, eos=True) == [BASE, 64, BASE + 1]


def test_auto_tokenizer_reads_what_is_saved(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    load_tokenizer(FOLDER).save(tmp_path)
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (BASE, BASE + 1, BASE + 256)
    for text, ids in known().items():
        assert again.encode(text, bos=True) == [BASE, *ids]
        if "<|" not in text:
            assert theirs.encode(text) == [BASE, *ids], text
    # Meta's numbers, counted from the first control token: 128 006, 128 007, 128 009, 128 255.
    names = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    found = theirs.convert_tokens_to_ids([*names, "<|reserved_special_token_247|>"])
    assert [number - BASE for number in found] == [6, 7, 9, 255]


def test_the_pipeline_is_that_of_transformers_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    lines = (line.split() for line in (FOLDER / "tokenizer.model").read_text().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    monkeypatch.setattr(TikTokenConverter, "load_tiktoken_bpe", staticmethod(lambda path: ranks))
    names = dict.fromkeys(tiktoken.CONTROL)
    converter = TikTokenConverter(FOLDER / "tokenizer.model", extra_special_tokens=names)
    expected = json.loads(converter.converted().to_str())
    found = json.loads(tiktoken.pipeline(FOLDER / "tokenizer.model").to_str())
    assert found.pop("post_processor") != expected.pop("post_processor")  # ours begins with BOS
    assert found == expected


@pytest.mark.parametrize("spoil", ["pattern", "merges", "letters"])
def test_a_wrong_part_gives_other_ids(monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    """Sabotage: the texts see each part of the pipeline."""
    if spoil == "pattern":
        monkeypatch.setattr(tiktoken, "_PATTERN", tiktoken._PATTERN.replace("{1,3}", "+"))
    elif spoil == "merges":
        right = tiktoken._merges
        monkeypatch.setattr(tiktoken, "_merges", lambda ranks: right(ranks)[::-1])
    else:
        right_letters = tiktoken._letters()
        swapped = [right_letters[byte ^ 1] for byte in range(256)]
        monkeypatch.setattr(tiktoken, "_letters", lambda: swapped)
    tokenizer = load_tokenizer(FOLDER)
    assert any(tokenizer.encode(text) != ids for text, ids in known().items())


def _changed(lines: list[str], place: int, line: str | None) -> str:
    return "\n".join([*lines[:place], *([line] if line is not None else []), *lines[place + 1 :]])


@pytest.mark.parametrize(
    ("place", "line", "words"),
    [
        (3, "IQ==", "line 4 is no token in base64 and its rank"),
        (3, "!!!! 3", "line 4 is no token in base64 and its rank"),
        (300, None, "a token or a rank is there twice, or is left out"),
        (300, "IQ== 300", "a token or a rank is there twice, or is left out"),
        (299, "cXV4cXV4 300", "a token or a rank is there twice, or is left out"),
        (0, "cXV4cXV4 0", "byte 0x21 is no token: the list is not whole"),
    ],
)
def test_a_damaged_list_is_named(tmp_path: Path, place: int, line: Any, words: str) -> None:
    lines = (FOLDER / "tokenizer.model").read_text().splitlines()
    (tmp_path / "tokenizer.model").write_text(_changed(lines, place, line))
    with pytest.raises(DataError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.what == f"this is no tokenizer that can be read: {words}"
    assert caught.value.where == str(tmp_path / "tokenizer.model")
