"""Every change that the simulator makes to torch and DeepSpeed, each with its reason.

Applied by `apply` in a process of the simulator's own, which ends with its simulation. Nothing
outside this file assigns into torch or deepspeed; a test looks for it.
"""

from __future__ import annotations

from typing import Any

import cpuinfo
import torch
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.ops.op_builder.builder import OpBuilder
from deepspeed.runtime.zero import (
    parameter_offload,
    partition_parameters,
    partitioned_param_coordinator,
    stage3,
)
from torch import nn
from torch._subclasses import fake_impls

from ds_llama.simulator import accelerator, attention, autocast, sharding, standins
from ds_llama.zero import swap

aten = torch.ops.aten


def apply(device: str) -> None:
    """All of them, before anything is simulated on `device`."""
    _answer_for_values()
    _update_in_place()
    _believe_that_ranks_agree()
    _make_tensors_on_sim()
    _convert_modules()
    _forget_streams()
    _attend_as_on_cuda()
    _forget_casts()
    _load_stand_ins()
    _swap_to_nowhere()
    _gather_without_views()
    if device == "sim":
        set_accelerator(accelerator.SimAccelerator())
    else:
        _allow_fp16()
        _scatter_as_gloo_does()


# --- torch -----------------------------------------------------------------------------------


def _answer_for_values() -> None:
    """Python asks tensors for values, which fake ones do not have (fake_impls.py:1218).

    The answers are those of a step in which nothing happens: no flag is set (bool, and the uint8 in
    which DeepSpeed reduces its overflow flag, stage3.py:3042), and every number is one.
    """

    def item(fake_mode: Any, func: Any, tensor: torch.Tensor) -> Any:
        if tensor.dtype == torch.bool:
            return False
        if tensor.dtype == torch.uint8:
            return 0
        return 1.0 if tensor.is_floating_point() else 1

    fake_impls.op_implementations_dict[aten._local_scalar_dense.default] = item
    fake_impls.op_implementations_dict[aten.equal.default] = lambda mode, func, a, b: True


def _update_in_place() -> None:
    """torch's fused SGD and Adagrad have no form without data; they write and allocate nothing."""
    for op in (aten._fused_sgd_.default, aten._fused_adagrad_.default):
        fake_impls.op_implementations_dict[op] = lambda mode, func, *tensors, **settings: None


_real_tensor = torch.tensor


def _tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    made = _real_tensor(data, *args, device="cpu", **kwargs)
    if device is None or torch.device(device).type == "cpu":
        return made
    return torch.empty(made.shape, dtype=made.dtype, device=device)


def _make_tensors_on_sim() -> None:
    """`torch.tensor` writes its data before any mode sees it, which "sim" cannot hold.

    `zero.Init` puts back the function that it found at import (partition_parameters.py:676).
    """
    torch.tensor = _tensor  # type: ignore[assignment]
    partition_parameters._orig_torch_tensor = _tensor


def _convert_modules() -> None:
    """`Module.to` and `to_empty` swap fake parameters, which anything weakly referenced refuses.

    A real parameter gets other data, or is replaced where it has none yet (module.py:958, :1005).
    """
    nn.Module._apply = _apply  # type: ignore[method-assign, assignment]


def _apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    for child in module.children() if recurse else ():
        child._apply(fn)
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            applied = fn(parameter)
        if parameter.is_meta and not applied.is_meta:
            module._parameters[key] = nn.Parameter(applied, parameter.requires_grad)
        elif applied is not parameter:
            parameter.data = applied
    for key, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[key] = fn(buffer)
    return module


def _forget_streams() -> None:
    """Streams tell CUDA's allocator when memory may be used again; `accelerator` has none."""
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign, assignment]


def _attend_as_on_cuda() -> None:
    """The fused kernels of attention are chosen in C++, by devices that torch knows."""
    nn.functional.scaled_dot_product_attention = attention.attention


def _forget_casts() -> None:
    """What autocast keeps, torch lets go of in C++; `autocast` keeps its own."""
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        clear()
        autocast.forget()

    torch.clear_autocast_cache = clear_both


def _scatter_as_gloo_does() -> None:
    """gloo reduce-scatters over a copy of the whole input: the operations that read its result,
    aten.split and aten.copy_, are given a storage as large as that.
    """
    real = torch.distributed.reduce_scatter_tensor

    def scatter(output: torch.Tensor, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        work = real(output, input, *args, **kwargs)
        input.clone()
        return work

    torch.distributed.reduce_scatter_tensor = scatter


# --- DeepSpeed -------------------------------------------------------------------------------


def _gather_without_views() -> None:
    """A view for every rank and parameter, which takes hours on a thousand ranks (`sharding`)."""
    partition_parameters.AllGatherCoalescedHandle.wait = sharding.wait
    stage3.reduce_scatter_coalesced = sharding.reduce_scatter_coalesced


def _load_stand_ins() -> None:
    """Compiled ops crash the process when they are given fake tensors; none is compiled here.

    Their Python asks which processor this is, a second of subprocesses (cpu_adam.py:79).
    """
    OpBuilder.load = standins.load
    cpuinfo.get_cpu_info = dict


def _allow_fp16() -> None:
    """DeepSpeed refuses fp16 where oneDNN has no fast kernels for it; here nothing is computed."""
    get_accelerator().is_fp16_supported = lambda: True  # type: ignore[method-assign]


def _swap_to_nowhere() -> None:
    """No disk is needed for files without content (`standins.Nvme`), and no one's is locked."""
    swap._claim = lambda *_: None  # type: ignore[assignment]
    swap._require_op = lambda: None  # type: ignore[assignment]


def _believe_that_ranks_agree() -> None:
    """ZeRO-3 compares values over ranks (runtime/zero/utils.py:86); here there is one rank."""
    for module in (partitioned_param_coordinator, parameter_offload):
        if hasattr(module, "assert_ints_same_as_other_ranks"):
            module.assert_ints_same_as_other_ranks = lambda *_, **__: None
