"""Rotary position embedding (Su et al. 2021), half-rotation as in Hugging Face; tables in fp32.

A table rounded to bf16 is off by up to 1.5 rad at position 8191, and `zero.Init`, `.bfloat16()` and
`.to(dtype)` all round floating tensors that they can reach: those made by torch's constructors
under `zero.Init`, parameters and buffers. So tables start from an integer `arange`, are made at the
first forward pass, and live in a plain object. Every layer and step reads the same one.

Formulas: linear (Chen et al. 2023), dynamic NTK (bloc97 2023, in transformers' form), llama3 (Llama
3.1's reference code), yarn (Peng et al. 2023). Operations follow transformers' order, so that the
frequencies agree to the last bit.

Legend: B batch, T tokens, H heads, d head dim, h = d / 2 angles.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ds_llama.config import LlamaConfig
from ds_llama.config.rope import RopeParameters

# --- frequencies -----------------------------------------------------------------------------


def inv_freq(
    parameters: RopeParameters,
    head_dim: int,
    sequence_length: int,
    max_position_embeddings: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, float]:
    """Radians per position, fp32 (h,), and what cosines and sines are multiplied with.

    `sequence_length` is the running length, past tokens included; only `dynamic` depends on it.
    """
    exponent_h = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    kind, factor = parameters.rope_type, parameters.factor or 1.0
    theta: float | Tensor = parameters.rope_theta
    if kind == "dynamic" and sequence_length > max_position_embeddings:
        length = torch.tensor(sequence_length, device=device).float()
        # In fp32, since transformers computes this power so and the bits must be the same.
        ratio = factor * length / max_position_embeddings
        theta = theta * (ratio - (factor - 1)) ** (head_dim / (head_dim - 2))
    if kind == "yarn":
        return _yarn(parameters, theta**exponent_h), _yarn_attention(parameters)
    plain_h = 1.0 / (theta**exponent_h)
    if kind == "linear":
        plain_h /= factor
    if kind == "llama3":
        plain_h = _llama3(parameters, plain_h)
    return plain_h, 1.0


def _llama3(parameters: RopeParameters, plain_h: Tensor) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between interpolated."""
    factor, original = _given(parameters.factor, parameters.original_max_position_embeddings)
    low, high = _given(parameters.low_freq_factor, parameters.high_freq_factor)
    wave_h = 2 * math.pi / plain_h
    slowed_h = torch.where(wave_h > original / low, plain_h / factor, plain_h)
    smooth_h = (original / wave_h - low) / (high - low)
    between_h = (1 - smooth_h) * slowed_h / factor + smooth_h * slowed_h
    medium_h = ~(wave_h < original / high) & ~(wave_h > original / low)
    return torch.where(medium_h, between_h, slowed_h)


def _yarn(parameters: RopeParameters, period_h: Tensor) -> Tensor:
    """Dimensions that turn often keep their frequency, those that turn seldom are slowed."""
    factor, original = _given(parameters.factor, parameters.original_max_position_embeddings)
    dim, theta = 2 * period_h.numel(), parameters.rope_theta

    def dimension(turns: float) -> float:
        """The dimension that turns so often within the original length."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(parameters.beta_fast or 32), dimension(parameters.beta_slow or 1)
    if parameters.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001
    steps_h = torch.arange(dim // 2, device=period_h.device).float()
    keep_h = 1 - ((steps_h - low) / span).clamp(0, 1)
    return 1.0 / (factor * period_h) * (1 - keep_h) + 1.0 / period_h * keep_h


def _given(*values: float | None) -> list[float]:
    """Values that the rope_type needs; RopeParameters.problems() has seen to it."""
    given = [value for value in values if value is not None]
    assert len(given) == len(values)
    return given


def _yarn_attention(parameters: RopeParameters) -> float:
    """Attention temperature, folded into both tables (section 3.4 of the paper)."""

    def scale(mscale: float) -> float:
        factor = parameters.factor or 1.0
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if parameters.attention_factor is not None:
        return parameters.attention_factor
    if parameters.mscale and parameters.mscale_all_dim:
        return scale(parameters.mscale) / scale(parameters.mscale_all_dim)
    return scale(1.0)


# --- tables ----------------------------------------------------------------------------------

Tables = tuple[Tensor, Tensor]


class RotaryTable:
    """Cosines and sines of one model, fp32, kept for the device and the length last asked for.

    Not a module, and its tensors are no buffers: see the top of this file. Lengths are rounded up
    to a power of two, so that generation does not make a new table for every token.
    """

    def __init__(self, config: LlamaConfig) -> None:
        self.parameters = config.rope_parameters
        self.head_dim = config.head_dim
        self.max_position_embeddings = config.max_position_embeddings
        self._key: tuple[Any, ...] = ()
        self._tables: Tables | None = None

    def __call__(self, start: int, stop: int, device: torch.device) -> Tables:
        """cos and sin of positions start … stop - 1, each fp32 (T, 1, h); views of one table."""
        running = self._running_length(stop)
        room = running or 1 << (stop - 1).bit_length()
        key = (device, running, _fake_mode())
        if self._tables is None or self._key != key or self._tables[0].shape[0] < stop:
            positions_T = torch.arange(room, device=device)
            self._key, self._tables = key, self.compute(positions_T, stop)
        cos, sin = self._tables
        return cos[start:stop], sin[start:stop]

    def at(self, positions_BT: Tensor, longest: int | None = None) -> Tables:
        """cos and sin of given positions, each fp32 (B, T, 1, h).

        longest: the greatest position and one, read from the device where it is wanted and None.
        """
        running = 0
        if self.parameters.rope_type == "dynamic":
            running = int(positions_BT.max()) + 1 if longest is None else longest
        return self.compute(positions_BT, running)

    def compute(self, positions: Tensor, sequence_length: int) -> Tables:
        """Tables of any integer positions (…,), each fp32 (…, 1, h), without the cache."""
        with torch.no_grad(), torch.autocast(positions.device.type, enabled=False):
            frequencies_h, scale = inv_freq(
                self.parameters,
                self.head_dim,
                sequence_length,
                self.max_position_embeddings,
                positions.device,
            )
            angles = positions[..., None, None].float() * frequencies_h
            return angles.cos().mul_(scale), angles.sin().mul_(scale)

    def is_exact(self) -> bool:
        """Whether the kept table, if any, equals its recomputation bit for bit."""
        if self._tables is None:
            return True
        device, running, _ = self._key
        positions = torch.arange(self._tables[0].shape[0], device=device)
        fresh = self.compute(positions, running)
        kept = self._tables
        return all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(kept, fresh, strict=True)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> RotaryTable:
        """A copy makes its own table: the kept one may be on a device that the copy is not for."""
        twin = object.__new__(RotaryTable)
        twin.__dict__.update(self.__dict__, _key=(), _tables=None)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_key": (), "_tables": None}

    def _running_length(self, stop: int) -> int:
        """The length that the frequencies depend on, or 0 where they depend on none."""
        long = stop > self.max_position_embeddings
        return stop if long and self.parameters.rope_type == "dynamic" else 0


def inexact_tables(model: nn.Module) -> list[str]:
    """Names of the modules whose kept rotary table differs from its fp32 recomputation.

    Call it outside `zero.Init`. A table that no forward pass has asked for yet cannot be wrong.
    """
    tables = ((name, getattr(module, "rotary", None)) for name, module in model.named_modules())
    return [name for name, t in tables if isinstance(t, RotaryTable) and not t.is_exact()]


def _fake_mode() -> int | None:
    """Which FakeTensorMode is active: a table made under one is of no use outside it."""
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return None if mode is None else id(mode)


# --- rotation --------------------------------------------------------------------------------


def _turned(x_BTHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of each head."""
    wide_BTHd = x_BTHd.to(torch.promote_types(x_BTHd.dtype, cos.dtype))
    a, b = wide_BTHd.chunk(2, -1)
    out_BTHd = wide_BTHd * torch.cat((cos, cos), -1)
    first, second = out_BTHd.chunk(2, -1)
    first.addcmul_(b, sin, value=-1)
    second.addcmul_(a, sin)
    return out_BTHd.to(x_BTHd.dtype)


class _Rotate(torch.autograd.Function):
    """Keeps the tables only: a rotation's gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turned(q, cos, sin), _turned(k, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad_q, cos, -sin), _turned(grad_k, cos, -sin), None, None


def rotate(q_BTHd: Tensor, k_BTKd: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by their positions; computed in fp32 or wider, returned as they came.

    cos, sin: (T, 1, h) or (B, T, 1, h), from a RotaryTable.
    """
    return _Rotate.apply(q_BTHd, k_BTKd, cos, sin)


def rotate_rounded(
    q_BTHd: Tensor, k_BTKd: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """`rotate` with transformers' bits: tables and every product in the dtype of q. No gradients.

    In bf16 the two differ in the third digit, which is enough for another token at a near tie.
    """
    cos, sin = (torch.cat((table, table), -1).to(q_BTHd.dtype) for table in (cos, sin))

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    return turned(q_BTHd), turned(k_BTKd)
