"""Several documents in a row against Hugging Face, which finds them by their positions."""

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
LENGTHS = torch.tensor([[40, 1, 55], [96, 0, 0]])
POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS.tolist()])


@pytest.mark.parametrize("name", ["mha", "gqa", "rope-llama3", "rope-dynamic"])
def test_documents_by_their_lengths(name: str) -> None:
    config = small_config(**CASES[name])
    theirs = huggingface(config)
    theirs.config.use_cache = False  # with a cache they look for no documents
    model, ids = ours(theirs, config), tokens(config)
    with torch.no_grad(), exact_norms(torch.float64):
        got = model(ids, document_lengths=LENGTHS).logits
        wanted = theirs(ids, position_ids=POSITIONS).logits
    assert difference(got, wanted) < EXACT


@pytest.mark.parametrize("positions", [POSITIONS, POSITIONS.flip(-1), POSITIONS % 7])
def test_positions_alone_part_nothing(positions: torch.Tensor) -> None:
    """What they do by default, and the twin of the test above."""
    config = small_config()
    theirs = huggingface(config)
    model, ids = ours(theirs, config), tokens(config)
    found = compare(model, theirs, ids, ids, position_ids=positions)
    assert worst(found)[0] < EXACT, worst(found)
    with torch.no_grad(), exact_norms(torch.float64):
        across, apart = (model(ids, document_lengths=n).logits for n in (None, LENGTHS))
    assert difference(across[0, 41:], apart[0, 41:]) > 1e-3
