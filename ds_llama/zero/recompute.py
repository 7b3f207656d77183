"""The `activation_checkpointing` section of the DeepSpeed JSON, made to act.

DeepSpeed reads the section and then waits for the model to call `deepspeed.checkpointing`; a model
that never does trains without recomputation and without a word. Here the section's presence means
that parts of the model are recomputed in the backward pass, by DeepSpeed's own function, so that
its keys (partitioned, contiguous, host-side activations) keep their meaning. Which parts is the
run's `train.recompute`: whole blocks, or the attention or the MLP of each, in every k-th block.

Bytes that the forward pass of one micro-batch keeps less for each recomputed part of `Llama`, with
N = batch x tokens, e bytes an element of the training dtype, D, A, K, F the widths of the model,
the queries, the keys and the feed-forward, H query heads:

    attention   q, k, v, the result, and SDPA's log-sum-exp    e N (2 A + 2 K) + 4 N H
    mlp         gate and up                                    e N (2 F)
    block       both of these, the two normed inputs, the      e N (2 A + 2 K + 2 F + 3 D)
                middle of the residual stream, 1/rms twice     + 4 N H + 8 N

What a part is given stays, as the input of its recomputation: for a block the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
from torch import nn

from ds_llama.config.run import RecomputeConfig
from ds_llama.errors import ModelError
from ds_llama.model.traits import Traits


def apply(
    model: nn.Module,
    traits: Traits,
    section: dict[str, Any] | None,
    what: RecomputeConfig | None = None,
) -> bool:
    """Recompute parts of `model` if the JSON has the section; says whether it does.

    A part's forward is replaced on the instance, so any model whose traits name its class can be
    recomputed. Evaluation, and any forward without gradients, runs the part as it is.
    Raises ModelError where the traits name no such class, or the model has none of it.
    """
    if section is None:
        return False
    deepspeed.checkpointing.configure(None, **_arguments(section))
    for module in _parts(model, traits, what or RecomputeConfig()):
        module.forward = _recomputed(module.forward)  # type: ignore[method-assign]
    return True


def _parts(model: nn.Module, traits: Traits, what: RecomputeConfig) -> list[nn.Module]:
    """The modules to recompute: every k-th block, or what is called `part` in it."""
    blocks = list(_instances(model, traits.block_class))
    rows = {"block": "block_class", "attention": "attention_class", "mlp": "mlp_class"}
    row = rows[what.part]
    chosen = blocks[:: what.every]
    if what.part != "block":
        chosen = [part for block in chosen for part in _instances(block, getattr(traits, row))]
    if not chosen:
        row = row if blocks else "block_class"
        raise ModelError(
            f"recomputation of {what.part}s is asked for, and the traits of "
            f"{type(model).__name__} name no {row} that the model has",
            where="train.recompute.part" if blocks else "deepspeed:activation_checkpointing",
            remedy=f"give {row}= in its Traits, or remove train.recompute and the "
            "activation_checkpointing section",
        )
    return chosen


def _instances(model: nn.Module, cls: type[nn.Module] | None) -> Iterator[nn.Module]:
    return (module for module in model.modules() if cls is not None and isinstance(module, cls))


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None and torch.is_grad_enabled():
            # Hugging Face's model makes a cache in training too; run twice, a part would find its
            # own keys and values in it and attend to every token twice.
            kwargs["past_key_values"] = None
        values = [*args, *kwargs.values()]
        own = [i for i, v in enumerate(values) if torch.is_tensor(v) and v.requires_grad]
        if not own or not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        shared = [None if i in own else value for i, value in enumerate(values)]

        def again(*activations: torch.Tensor) -> Any:
            whole = list(shared)
            for place, activation in zip(own, activations, strict=True):
                whole[place] = activation
            named = zip(kwargs, whole[len(args) :], strict=True)
            return forward(*whole[: len(args)], **dict(named))

        # DeepSpeed gets the activations alone. What it is given it may empty, to keep a partition
        # or a copy on the host (checkpointing.py:439, :476), and masks and rotary tables are other
        # blocks' too; None among the arguments would be doubled there (checkpointing.py:325).
        return deepspeed.checkpointing.checkpoint(again, *[values[place] for place in own])

    return run


def _arguments(section: dict[str, Any]) -> dict[str, Any]:
    return {
        "partition_activations": section.get("partition_activations", False),
        "contiguous_checkpointing": section.get("contiguous_memory_optimization", False),
        "num_checkpoints": section.get("number_checkpoints"),
        "checkpoint_in_cpu": section.get("cpu_checkpointing", False),
        "synchronize": section.get("synchronize_checkpoint_boundary", False),
        "profile": section.get("profile", False),
    }
