"""The vocabulary's size is settled before the parameters are divided, and refused after."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from ds_llama.errors import ModelError


def freeze(model: nn.Module) -> None:
    """Let `model.resize_token_embeddings`, transformers' name for it, say why it cannot be.

    It would put a new parameter in the place of one that the engine has divided and keeps masters
    and moments of; that one would go on being trained, and the new one never.
    """
    model.resize_token_embeddings = _refuse  # type: ignore[assignment]


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise ModelError(
        "the vocabulary cannot be resized any more: its rows are divided among the ranks or "
        "have their masters already",
        where="resize_token_embeddings",
        remedy='write {"pretrained": FOLDER, "vocab_size": N} as the model of the run, or resize '
        "before the model is given to DeepSpeed",
    )
