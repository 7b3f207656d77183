"""Text as tokens come: beside the tokenizers' own decoding, and a search by character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.data.tokenizer import JsonTokenizer, Tokenizer, load_tokenizer, train_tokenizer
from ds_llama.evals import stream
from ds_llama.evals.stream import TextStream

CHARACTERS = list("ab c\n<>é€漢😀")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece tokenizer with byte fallback, and the same as tokenizer.json."""
    found = tmp_path_factory.mktemp("tokenizer")
    (found / "text.txt").write_text("ab ba abba cab <a> a cabb aab acc bcc\n" * 30)
    train_tokenizer([found / "text.txt"], found, vocab_size=280)
    return found


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def coder(request: pytest.FixtureRequest, folder: Path) -> Tokenizer:
    if request.param == "tokenizer.json":
        return JsonTokenizer(folder / request.param)
    return load_tokenizer(folder / request.param)


@given(st.text(CHARACTERS, max_size=30))
def test_pieces_joined_are_what_the_tokenizer_says(coder: Tokenizer, text: str) -> None:
    context = coder.encode("ab", bos=True)
    tokens = coder.encode(text)
    writing = TextStream(coder.decode, context)
    pieces = [writing.push(token) for token in tokens] + [writing.close()]
    whole = coder.decode([*context, *tokens])
    assert "".join(pieces) == whole.removeprefix("ab")
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_whole(coder: Tokenizer) -> None:
    context = coder.encode("a", bos=True)
    writing = TextStream(coder.decode, context)
    tokens = coder.encode("a😀b", bos=True)[len(context) :]
    assert [writing.push(token) for token in tokens] == ["", "", "", "😀", "b"]
    assert writing.close() == ""


def test_half_a_character_is_what_the_tokenizer_makes_of_it(coder: Tokenizer) -> None:
    context = coder.encode("a", bos=True)
    half = coder.encode("a😀", bos=True)[len(context) :][:2]
    writing = TextStream(coder.decode, context)
    assert [writing.push(token) for token in half] == ["", ""]
    assert writing.close() == coder.decode([*context, *half])[1:]
    assert set(coder.decode([*context, *half])[1:]) == {"\ufffd"}


def _by_character(text: str, stop: list[str]) -> str:
    """What is before the stop string that is complete first."""
    for end in range(len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            return text[: end - len(max(ending, key=len))]
    return text


STOPS = st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3)


@given(st.lists(st.text("ab<", max_size=5), max_size=12), STOPS)
def test_stop_strings_cut_wherever_tokens_begin(chunks: list[str], stop: list[str]) -> None:
    """Tokens that are these chunks; nothing is shown that a stop string takes back."""
    writing = TextStream(lambda ids: "".join(chunks[i] for i in ids), [], stop)
    shown, expected = "", _by_character("".join(chunks), stop)
    for token in range(len(chunks)):
        shown += writing.push(token)
        assert expected.startswith(shown)
        if writing.stopped:
            break
    assert shown + writing.close() == expected
    assert writing.stopped == (expected != "".join(chunks))


def test_without_holding_back_a_part_of_a_stop_string_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The twin of the test above."""
    monkeypatch.setattr(stream, "_beginning", lambda text, stop: 0)
    chunks = ["a", "<", "stop>"]
    writing = TextStream(lambda ids: "".join(chunks[i] for i in ids), [], ["<stop>"])
    assert "".join(writing.push(token) for token in range(3)).startswith("a<")


def test_each_token_is_decoded_a_few_times(coder: Tokenizer) -> None:
    """A text of n tokens costs in the order of n, not n squared."""
    decoded = 0

    def count(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return coder.decode(ids)

    tokens = coder.encode("ab " * 300)
    writing = TextStream(count, [1])
    for token in tokens:
        writing.push(token)
    assert decoded < 5 * len(tokens)
