"""Several documents in a row, told by positions that begin again, against Hugging Face."""

from __future__ import annotations

import pytest
import torch

from tests.parity.oracle import (
    CASES,
    compare,
    difference,
    exact_norms,
    huggingface,
    ours,
    small_config,
    tokens,
    worst,
)

EXACT = 1e-9
# 96 tokens a row: three documents, and one that is longer than the ropes' original length.
POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in ((40, 1, 55), (96,))])


@pytest.mark.parametrize("name", ["mha", "gqa", "rope-llama3", "rope-dynamic"])
def test_positions_that_begin_again_begin_a_document(name: str) -> None:
    config = small_config(**CASES[name])
    theirs = huggingface(config)
    theirs.config.use_cache = False  # with a cache they look for no documents
    model, ids = ours(theirs, config), tokens(config)
    found = compare(model, theirs, ids, ids, position_ids=POSITIONS)
    assert worst(found)[0] < EXACT, worst(found)


def test_twin_with_a_cache_they_attend_across_documents() -> None:
    config = small_config()
    theirs = huggingface(config)
    model, ids = ours(theirs, config), tokens(config)
    with torch.no_grad(), exact_norms(torch.float64):
        got = model(ids, position_ids=POSITIONS).logits
        across = theirs(ids, position_ids=POSITIONS).logits
    assert difference(got[0, :40], across[0, :40]) < EXACT
    assert difference(got[0, 41:], across[0, 41:]) > 1e-3
    assert difference(got[1], across[1]) < EXACT
