"""The `activation_checkpointing` section of the DeepSpeed JSON, made to act.

DeepSpeed reads the section and then waits for the model to call `deepspeed.checkpointing`; a model
that never does trains without recomputation and without a word. Here the section's presence means
that every block of the model is recomputed in the backward pass, by DeepSpeed's own function, so
that its keys (partitioned, contiguous, host-side activations) keep their meaning.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import nn

from ds_llama.model.traits import Traits


def apply(model: nn.Module, traits: Traits, section: dict[str, Any] | None) -> bool:
    """Recompute the blocks of `model` if the JSON has the section; says whether it does.

    A block's forward is replaced on the instance, so any model whose traits name a block class can
    be recomputed. Evaluation, and any forward without gradients, runs the block as it is.
    """
    if section is None or traits.block_class is None:
        return False
    deepspeed.checkpointing.configure(None, **_arguments(section))
    for module in model.modules():
        if isinstance(module, traits.block_class):
            module.forward = _recomputed(module.forward)  # type: ignore[method-assign]
    return True


def _recomputed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if kwargs.get("past_key_values") is not None:
            # Hugging Face's model makes a cache in training too; run twice, a block would find its
            # own keys and values in it and attend to every token twice.
            kwargs["past_key_values"] = None
        return deepspeed.checkpointing.checkpoint(forward, *args, **kwargs)

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
