from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_llama.data.encoding import Document, Policy, TextEncoder, encode, encoder_of
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer
from ds_llama.errors import DataError
from tests.unit.data.conftest import sentences

ODD = ["", " ", "\x00\x01", "<s></s>", "日本\U0001f600", "a\r\n\tb"]
TEXTS = [*ODD, *sentences(20), "日本 def " * 4000]


class Older:
    """A sentencepiece that gives no arrays."""

    def __init__(self, model: Any) -> None:
        self.encode, self.bos_id, self.eos_id = model.encode, model.bos_id, model.eos_id


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("kind", ["arrays", "older", "json"])
def test_a_batch_is_each_of_its_texts(
    tokenizer_folder: Path, bos: bool, eos: bool, kind: str
) -> None:
    file = tokenizer_folder / ("tokenizer.json" if kind == "json" else "tokenizer.model")
    tokenizer: Any = load_tokenizer(file)
    expected = [tokenizer.encode(text, bos=bos, eos=eos) for text in TEXTS]
    if kind == "older":
        tokenizer._model = Older(tokenizer._model)
    found = tokenizer.encode_batch(TEXTS, bos, eos)
    assert [list(map(int, ids)) for ids in found] == expected
    assert len(tokenizer.encode_batch([], bos, eos)) == 0


def test_a_batch_needs_the_tokens_that_it_asks_for(tokenizer_folder: Path) -> None:
    tokenizer: Any = load_tokenizer(tokenizer_folder / "tokenizer.model")
    tokenizer.bos_id = None
    with pytest.raises(DataError, match="the tokenizer has no BOS token"):
        tokenizer.encode_batch(["x"], True, False)


class Odd:
    """Masks every second id; refuses what says so."""

    vocab_size = 300

    def __call__(self, texts: list[str]) -> list[Document | str]:
        def made(text: str) -> Document | str:
            ids = list(text.encode())
            return (
                "no: " + text if "no" in text else Document(ids, [i % 2 for i in range(len(ids))])
            )

        return [made(text) for text in texts]


def test_masks_follow_their_ids_and_refusals_are_told(tokenizer: Tokenizer) -> None:
    policy = Policy("", False, False, 0.0, "chat")
    splits = encode(["abc", "no", "", "de"], Odd(), policy)  # type: ignore[arg-type]
    assert splits.refused == [(1, "no: no")]
    assert splits.train.sizes.tolist() == [3, 0, 2]
    assert splits.train.ids.tolist() == list(b"abcde")
    assert splits.train.mask is not None
    assert splits.train.mask.tolist() == [0, 1, 0, 0, 1]
    assert splits.train.mask.dtype == np.uint8
    assert splits.train.ids.dtype == np.uint16
    assert len(splits.validation.ids) == 0


def test_text_has_no_mask(tokenizer: Tokenizer) -> None:
    policy = Policy(str(tokenizer.path), True, True, 0.0)
    encoder = encoder_of(policy)
    assert isinstance(encoder, TextEncoder)
    found = encode(["def loss"], encoder, policy).train
    assert found.mask is None
    assert found.ids.tolist() == tokenizer.encode("def loss", bos=True, eos=True)
