"""`data.packing`, `data.attention_mask` and `data.truncation`: what goes together."""

from __future__ import annotations

from typing import Any

import pytest

from ds_llama.config import load_run
from ds_llama.errors import ConfigErrors

RUN = {"model": {"preset": "tiny"}, "optimizer": {}}


def load(compiled: bool = False, **data: Any) -> Any:
    train = {"steps": 1, "compile": compiled}
    return load_run({**RUN, "data": {"train": "x", **data}, "train": train})


@pytest.mark.parametrize(
    ("data", "apart"),
    [
        ({}, False),
        ({"attention_mask": "causal"}, False),
        ({"attention_mask": "block_causal"}, True),
        ({"packing": "best_fit"}, True),
        ({"packing": "none", "truncation": "split", "attention_mask": "block_causal"}, True),
    ],
)
def test_which_rows_keep_documents_apart(data: dict[str, Any], apart: bool) -> None:
    run = load(**data)
    assert run.data.block_causal is apart
    again = run.data.model_dump()  # what a run writes, every default spelled out, is a run again
    assert load(**again).data == run.data


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_attention_across_whole_documents_is_refused(packing: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(packing=packing, attention_mask="causal")
    (error,) = caught.value.errors
    assert (error.code, error.where) == ("packing-across-documents", "run:data.attention_mask")
    assert f"data.packing '{packing}' keeps documents apart" in error.what
    assert "remove data.attention_mask" in error.remedy


@pytest.mark.parametrize("truncation", ["left", "drop", "split"])
def test_windows_shorten_no_document(truncation: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(truncation=truncation)
    (error,) = caught.value.errors
    assert (error.code, error.where) == ("truncation-of-windows", "run:data.truncation")
    assert f"data.truncation '{truncation}' does nothing" in error.what
    assert "best_fit" in error.remedy


@pytest.mark.parametrize("data", [{"packing": "best_fit"}, {"attention_mask": "block_causal"}])
def test_documents_apart_are_not_compiled(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(True, **data)
    (error,) = caught.value.errors
    assert (error.code, error.where) == ("run-not-compiled", "run:train.compile")
    assert "documents that are kept apart: each batch has documents of other lengths" in error.what
    assert error.remedy == "remove one of the two"
    load(True)


def test_an_unknown_word_names_those_that_there_are() -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(packing="bestfit")
    (error,) = caught.value.errors
    assert error.where == "run:data.packing"
    assert "best_fit" in error.what + error.remedy
