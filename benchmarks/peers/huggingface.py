"""Hugging Face's LlamaForCausalLM as a peer: under the same DeepSpeed JSON, FSDP2, or DDP.

    "program": ["ds_llama", "../peers/huggingface.py:deepspeed", "../peers/huggingface.py:fsdp2",
                "../peers/huggingface.py:ddp"]

The same initial weights, data, optimizer (AdamW, fused, the same groups), clipping and ranks.
Half precision is what each way calls mixed precision:

    deepspeed   the resolved JSON as it is: half weights, fp32 masters
    fsdp2       fp32 weights in shards, gathered and reduced in half precision; blocks gathered
                again in the backward pass at stage 3 (`reshard_after_forward`), kept at 1 and 2
    ddp         fp32 weights and gradients on every rank, computed under autocast

`compile` compiles what each way's own documentation says: `engine.compile()`, every block before
`fully_shard`, the module under DDP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ds_llama.config.resolve import Resolved
from ds_llama.measure import accounting
from ds_llama.model.traits import traits_of
from ds_llama.zero import construct, world
from ds_llama.zero import engine as engines
from ds_llama.zero import optimizer as optimizers
from ds_llama.zero.step import Batch


def open_program(resolved: Resolved, options: dict[str, Any], way: str) -> Any:
    """What trains Hugging Face's model that way; collective."""
    ways: dict[str, Callable[..., Any]] = {"deepspeed": _DeepSpeed, "fsdp2": _FSDP2, "ddp": _DDP}
    return ways[way](resolved, options["compile"])


def model_of(resolved: Resolved, dtype: torch.dtype) -> LlamaForCausalLM:
    """Hugging Face's model with the weights that the run starts from."""
    config = LlamaConfig(**resolved.model.to_hf(), use_cache=False)
    # Not `.to(dtype)` after it, which would round the rotary frequencies.
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(construct.build(resolved, how="plain").state_dict())
    return model.train().to(world.device())


class _Peer(ABC):
    """One step in the words that all three share."""

    def step(self, window: Sequence[Batch]) -> tuple[float, float | None]:
        losses = []
        for number, batch in enumerate(window, start=1):
            inputs = {name: tensor.to(world.device()) for name, tensor in batch.items()}
            with accounting.phase("forward"):
                loss = self.forward(inputs)
            losses.append(loss.detach().float())
            with accounting.phase("backward"):
                self.backward(loss, last=number == len(window), steps=len(window))
                del loss
        with accounting.phase("step"):
            norm = self.update()
        mean = torch.stack(losses).mean()
        dist.all_reduce(mean)
        return float(mean) / world.world_size(), norm

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """The mean loss of a micro-batch."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool, steps: int) -> None:
        """Gradients of one of `steps` micro-batches."""

    @abstractmethod
    def update(self) -> float | None:
        """Clip and update; the norm before it."""

    def close(self) -> None:
        self.__dict__.clear()


class _DeepSpeed(_Peer):
    def __init__(self, resolved: Resolved, compiled: bool) -> None:
        model = model_of(resolved, getattr(torch, resolved.dtype))
        offloaded = resolved.offload_optimizer is not None
        optimizer = optimizers.build(
            _section(resolved), _groups(resolved, model), offloaded=offloaded
        )
        with accounting.phase("initialise"):
            self.engine, *_ = engines.create(model, resolved.deepspeed, optimizer=optimizer)
        if compiled:
            self.engine.compile()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.engine(**inputs).loss
        return loss

    def backward(self, loss: Tensor, *, last: bool, steps: int) -> None:
        self.engine.backward(loss)
        if not last:
            self.engine.step()

    def update(self) -> float | None:
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)


class _Torch(_Peer):
    """Torch's own: an optimizer over fp32 weights, clipped by the norm of all of them."""

    clip: float
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer

    def _prepare(self, resolved: Resolved, model: nn.Module) -> None:
        self.clip = float(resolved.deepspeed.get("gradient_clipping", 0.0))
        self.parameters = list(model.parameters())
        self.optimizer = optimizers.build(
            _section(resolved), _groups(resolved, model), offloaded=False
        )

    def update(self) -> float | None:
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        full = getattr(norm, "full_tensor", None)
        return float(norm if full is None else full())


class _FSDP2(_Torch):
    def __init__(self, resolved: Resolved, compiled: bool) -> None:
        dtype = getattr(torch, resolved.dtype)
        self.model = model_of(resolved, torch.float32)
        mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype)
        again = resolved.stage == 3
        with accounting.phase("initialise"):
            for block in self.model.model.layers:
                if compiled:
                    block.compile()
                fully_shard(block, mp_policy=mixed, reshard_after_forward=again)
            # Its own default for a root is to keep it: the backward pass begins with it.
            fully_shard(self.model, mp_policy=mixed, reshard_after_forward=False)
            self._prepare(resolved, self.model)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.model(**inputs).loss
        return loss

    def backward(self, loss: Tensor, *, last: bool, steps: int) -> None:
        self.model.set_requires_gradient_sync(last)
        (loss / steps).backward()


class _DDP(_Torch):
    def __init__(self, resolved: Resolved, compiled: bool) -> None:
        self.dtype = getattr(torch, resolved.dtype)
        model = model_of(resolved, torch.float32)
        if compiled:
            model.compile()
        with accounting.phase("initialise"):
            self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
            self._prepare(resolved, model)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        device, half = world.device().type, self.dtype != torch.float32
        with torch.autocast(device, self.dtype) if half else nullcontext():
            loss: Tensor = self.model(**inputs).loss
        return loss

    def backward(self, loss: Tensor, *, last: bool, steps: int) -> None:
        with nullcontext() if last else self.model.no_sync():
            (loss / steps).backward()


def _section(resolved: Resolved) -> Any:
    section = resolved.run.optimizer
    assert section is not None
    return section


def _groups(resolved: Resolved, model: nn.Module) -> list[dict[str, Any]]:
    return optimizers.parameter_groups(model, traits_of(model), _section(resolved))
