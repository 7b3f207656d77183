"""What a model's forward is called with for a batch, as its traits say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ds_llama.errors import ModelError
from ds_llama.model.documents import DOCUMENT_LENGTHS
from ds_llama.model.traits import Traits


def inputs_of(
    batch: Mapping[str, Tensor], device: torch.device | str, traits: Traits | None
) -> dict[str, Any]:
    """Keyword arguments: the batch's tensors on `device`, `document_lengths` as it is.

    Raises ModelError where the batch has several documents in a row, and the traits do not say that
    the model can tell them apart.
    """
    inputs: dict[str, Any] = {
        name: tensor.to(device, non_blocking=True)
        for name, tensor in batch.items()
        if name != DOCUMENT_LENGTHS
    }
    if DOCUMENT_LENGTHS not in batch:
        return inputs
    if traits is None or traits.apart is None:
        raise ModelError(
            "the batch keeps documents apart, and this model is not known to",
            where="data.attention_mask",
            remedy='give apart= in its Traits, or take "packing": "windows" and '
            '"attention_mask": "causal"',
        )
    if traits.takes_lengths:
        inputs[DOCUMENT_LENGTHS] = batch[DOCUMENT_LENGTHS]
    return {**inputs, **traits.apart}
