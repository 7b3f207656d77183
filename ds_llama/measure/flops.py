"""FLOPs of what runs, by the formulas of `torch.utils.flop_counter`, recomputation apart.

    with Flops() as flops:
        take_step(engine, window)
    flops.model        # equal to LlamaConfig.flops_per_token(T) x tokens
    flops.hardware     # and what was computed twice: HFU's count

Products of matrices and attention are counted, a multiply-add as two; all else is less than a
hundredth. torch's FlopCounterMode is not used itself, only its registry: it hangs hooks on every
module and names no recomputation; and its counts of attention are not those of
`LlamaConfig.flops_per_token`, in three ways that are mended here:

    causal attention    counted as the full square; here half of it
    its backward        5 products, since a fused kernel computes the scores again; here 4, and the
                        fifth apart
    on the CPU, and on private devices, no formula at all

What a kernel for causal attention computes above the diagonal is not counted. On the CPU, between
256 and 512 tokens, `model.attention` calls a masked kernel for the late half of the queries, whose
full rectangle is counted: 5/4 of the attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ds_llama.measure import accounting
from ds_llama.measure.observing import Observing

_ACCUMULATE = "torch::autograd::AccumulateGrad"
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
_FORWARD = frozenset(_ATTENTION)
_BACKWARD = frozenset(f"{name}_backward" for name in _ATTENTION)


class Flops(Observing):
    """Counts while entered; FLOPs of this rank.

    forward, backward: of the model. recomputed: forwards repeated by checkpoints. in_kernels: the
    scores, computed again by the backward of fused attention. optimizer: products of an update, as
    Muon's, which are told apart where an Account with phases is entered too.

    What a checkpoint's node of the backward pass runs itself is a forward repeated (DeepSpeed's
    CheckpointFunction and torch's reentrant one), and so is what runs with gradients enabled there
    (torch's other one, whose custom functions go unseen). A product that forward makes for the
    backward pass, as the loss of `model.loss` does, is in `forward`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.forward = self.backward = self.recomputed = self.in_kernels = self.optimizer = 0

    @property
    def model(self) -> int:
        """Every product once: what MFU counts."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """What was computed for the model: HFU's count."""
        return self.model + self.recomputed + self.in_kernels

    def to_dict(self) -> dict[str, int]:
        return {
            "model": self.model,
            "hardware": self.hardware,
            "forward": self.forward,
            "backward": self.backward,
            "recomputed": self.recomputed,
            "in_kernels": self.in_kernels,
            "optimizer": self.optimizer,
        }

    def observes(self, func: Any) -> bool:
        known = func._opname in _FORWARD | _BACKWARD or func._overloadpacket in flop_registry
        return func.namespace == "aten" and known

    def saw(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if func._opname in _FORWARD:
            self._add(_attention_flops(func, args, kwargs))
        elif func._opname in _BACKWARD:
            once = _attention_flops(func, args, kwargs)
            self._add(2 * once)
            self.in_kernels += once // 2
        else:
            self._add(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))

    def _add(self, flops: int) -> None:
        node = torch._C._current_autograd_node()
        name = "" if node is None else node.name()
        if name == _ACCUMULATE or (node is None and _doing() in ("backward", "step")):
            self.optimizer += flops
        elif node is None:
            self.forward += flops
        elif torch.is_grad_enabled() or "Checkpoint" in name:
            self.recomputed += flops
        else:
            self.backward += flops


def _doing() -> str | None:
    account = accounting.entered()
    return None if account is None else account.doing


def _attention_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The two products of a forward: scores, and their sum of values."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    flops = sdpa_flop_count(given["query"].shape, given["key"].shape, given["value"].shape)
    return flops // 2 if given.get("is_causal", False) else flops
