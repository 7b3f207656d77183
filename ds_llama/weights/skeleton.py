"""Names and shapes of a network's tensors, in Hugging Face's order, without their memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ds_llama.config.model import LlamaConfig
from ds_llama.errors import ModelError
from ds_llama.weights.tensorfile import Spec, equal

TIED = ("lm_head.weight", "model.embed_tokens.weight")


def specs_of(config: LlamaConfig, dtype: torch.dtype) -> dict[str, Spec]:
    """Every tensor that a folder of this network stores; a tied head is not stored."""
    from ds_llama.model.llama import Llama

    with torch.device("meta"):
        model = Llama(config, init=False)
    return {name: Spec(dtype, tuple(p.shape)) for name, p in model.named_parameters()}


def require_same(
    expected: Mapping[str, Spec], found: Mapping[str, tuple[int, ...]], where: object
) -> None:
    """Raise ModelError unless `found` (names and shapes) is the network that `expected` is.

    The head of tied embeddings may be among `found`.
    """
    names = found.keys() - ({TIED[0]} if TIED[0] not in expected else set())
    for name in sorted(expected.keys() ^ names):
        what = "is missing" if name in expected else "does not belong to the network"
        raise _foreign(f"{name} {what}", where)
    for name, spec in expected.items():
        if found[name] != spec.shape:
            what = f"has shape {list(found[name])}, the config says {list(spec.shape)}"
            raise _foreign(f"{name} {what}", where)


def tied_name(source: Any) -> str:
    """Under which name a folder of a tied network stores the embedding: its own, or the head's.

    source: an open ModelFolder or MetaFolder. Raises ModelError when it stores both and they are
    not equal: which of them was trained, only its owner knows.
    """
    head, embedding = TIED
    if head not in source.names:
        return embedding
    if embedding not in source.names:
        return head
    spec = source.spec(head)
    both = (partial(source.read, name) for name in TIED)
    if source.spec(embedding) != spec or not equal(*both, spec):
        raise ModelError(
            "the config ties the head to the embedding, and the folder holds another head",
            where=str(source.path),
            remedy='write "tie_word_embeddings": false in its config.json if both were trained',
        )
    return embedding


def _foreign(what: str, where: object) -> ModelError:
    return ModelError(
        f"the weights are not those of the config: {what}",
        where=str(where),
        remedy="give the config.json that belongs to these weights",
    )
