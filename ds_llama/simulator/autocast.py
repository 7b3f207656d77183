"""`torch.autocast` on "sim": which operations run in which dtype, and what that allocates.

torch decides this in C++ for its own devices (aten/src/ATen/autocast_mode.h). The lists are CUDA's,
as far as language models come across them. Casts of parameters are kept until the outermost
autocast region ends, as there: for stage 2 that is a copy of the weights in half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

_LOWER = (
    *("addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "einsum", "linear"),
    *("linalg_multi_dot", "linalg_vecdot", "matmul", "mm", "mv", "prelu"),
)
_FP32 = (
    *("exp", "expm1", "log", "log10", "log1p", "log2", "logsumexp", "reciprocal", "rsqrt", "tan"),
    *("binary_cross_entropy_with_logits", "kl_div", "layer_norm", "mse_loss", "nll_loss"),
    *("pow.Scalar", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "softplus"),
)
_FP32_RESULT = ("cumsum", "log_softmax.int", "prod", "softmax.int", "sum", "sum.dim_IntList")
_WIDEST = ("addcdiv", "addcmul", "cat", "dot", "scatter_add", "stack")

_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
_kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
_libraries: list[torch.library.Library] = []  # what they register ends with them


def register() -> None:
    """Give every operation its rule; once in a process, after the device is known."""
    everything = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel)
    aten = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    rules = ((_LOWER, _lower), (_FP32, _to_fp32), (_FP32_RESULT, _with_fp32), (_WIDEST, _widest))
    for names, rule in rules:
        for name in names:
            packet, _, overload = name.partition(".")
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            aten.impl(name, rule(op))
    _libraries.extend((everything, aten))


def forget() -> None:
    """The outermost region has ended."""
    _kept.clear()


def _outside(rule: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
    """`rule(op, args, kwargs)` as a kernel, in which autocast is done with its work."""

    def of(op: Any) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_KEYS):
                return rule(op, args, kwargs)

        return kernel

    return of


@_outside
def _lower(op: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = tree_map_only(torch.Tensor, _cast_to_lower, (args, kwargs))
    return op(*args, **kwargs)


@_outside
def _to_fp32(op: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = tree_map_only(torch.Tensor, _cast_to_fp32, (args, kwargs))
    return op(*args, **kwargs)


@_outside
def _with_fp32(op: Any, args: Any, kwargs: Any) -> Any:
    if _is_half(args[0]) and kwargs.get("dtype") is None:
        args = (_cast_to_fp32(args[0]), *args[1:])
    return op(*args, **kwargs)


@_outside
def _widest(op: Any, args: Any, kwargs: Any) -> Any:
    dtypes = set()
    tree_map_only(torch.Tensor, lambda t: dtypes.add(t.dtype), (args, kwargs))
    if torch.float32 in dtypes:
        args, kwargs = tree_map_only(torch.Tensor, _cast_to_fp32, (args, kwargs))
    return op(*args, **kwargs)


def _is_half(value: Any) -> bool:
    return torch.is_tensor(value) and value.dtype in (torch.float16, torch.bfloat16)


def _cast_to_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if _is_half(tensor) else tensor


def _cast_to_lower(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.get_autocast_dtype("sim")
    if not tensor.is_floating_point() or tensor.dtype in (dtype, torch.float64):
        return tensor
    keep = tensor.requires_grad and tensor.is_leaf and tensor.dtype == torch.float32
    if not keep or tensor._is_view() or not torch.is_autocast_cache_enabled():
        return tensor.to(dtype)
    if id(tensor) not in _kept:
        _kept[id(tensor)] = tensor, tensor.to(dtype)
    return _kept[id(tensor)][1]
