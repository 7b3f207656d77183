"""The optimizer that the run asks for and the offload needs."""

from __future__ import annotations

import torch
from torch import nn

from ds_llama.config.optimizer import OptimizerConfig
from ds_llama.model.traits import Traits, decay_groups

Groups = list[dict[str, object]]


def parameter_groups(model: nn.Module, traits: Traits, weight_decay: float) -> Groups:
    """Two groups, with and without decay, by the rows of the traits; empty groups are left out.

    Norms and biases are not decayed. A parameter that no row matches is a `ModelError`.
    """
    decayed, undecayed = decay_groups(model, traits)
    groups: Groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build(section: OptimizerConfig, groups: Groups, *, offloaded: bool) -> torch.optim.Optimizer:
    """AdamW over `groups`.

    On the device torch's fused AdamW, which needs no compilation and updates in one pass as
    DeepSpeed's FusedAdam does; DeepSpeed's own `DeepSpeedCPUAdam` when the optimizer state lives
    on the host (`offloaded`), since DeepSpeed overlaps and vectorises that one.
    """
    settings = {"lr": section.lr, "betas": tuple(section.betas), "eps": section.eps}
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, **settings, adamw_mode=True)
    return torch.optim.AdamW(groups, **settings, fused=True)
