"""Initial values: a pure function of (seed, parameter name, element index).

    parameter                                       initial value
    ------------------------------------------------------------------------------
    *norm.weight                                    1
    *.bias                                          0
    embed_tokens, lm_head, *_proj: weight           normal(0, config.initializer_range)

as transformers' `LlamaForCausalLM` has it (a padding token's embedding is drawn like any other).

Values are drawn in fp32 on the CPU, in blocks of 2^20 elements, each from a generator of its own,
and then cast. So any slice of a parameter can be drawn alone, by whichever rank keeps it, and every
way of construction and every world size gives the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from ds_llama.errors import ModelError

BLOCK = 2**20


@dataclass(frozen=True)
class Rule:
    """normal(mean, std) for a parameter of `size` elements; a constant where std is 0."""

    size: int
    mean: float = 0.0
    std: float = 0.0


def rules(model: nn.Module) -> dict[str, Rule]:
    """The table above for a model with `.config.initializer_range`; a tied parameter counts once.

    Partitioned parameters have their full size. Raises ModelError for a name that the table lacks.
    """
    std = float(model.config.initializer_range)
    return {name: _rule(name, _size(p), std) for name, p in model.named_parameters()}


def initialize_(model: nn.Module, seed: int) -> None:
    """Fill every parameter of a plainly constructed model in place; this decides its values."""
    table = rules(model)
    for name, parameter in model.named_parameters():
        fill_(parameter.data.view(-1), name, table[name], 0, seed)


def fill_(target: Tensor, name: str, rule: Rule, start: int, seed: int) -> None:
    """Set flat `target`, any dtype and device, to the elements from `start` on, block by block."""
    if rule.std == 0:
        target.fill_(rule.mean)
        return

    def fill(piece: tuple[int, int, int]) -> None:
        block, low, high = piece
        values = _block(name, rule, block, seed)[low - block * BLOCK : high - block * BLOCK]
        with torch.no_grad():
            target[low - start : high - start].copy_(values)

    pieces = list(_pieces(start, start + target.numel()))
    threads = min(torch.get_num_threads(), len(pieces))
    if threads < 2:
        for piece in pieces:
            fill(piece)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, pieces))


def draw(name: str, rule: Rule, start: int, stop: int, seed: int) -> Tensor:
    """Elements start … stop - 1 of the flattened parameter, fp32 (stop - start,) on the CPU."""
    values = torch.empty(stop - start, dtype=torch.float32, device="cpu")
    fill_(values, name, rule, start, seed)
    return values


def _rule(name: str, size: int, std: float) -> Rule:
    kind = name.rpartition(".")[2]
    if kind == "bias":
        return Rule(size)
    if name.endswith("norm.weight"):
        return Rule(size, mean=1.0)
    if name.endswith(("_proj.weight", "embed_tokens.weight", "lm_head.weight")):
        return Rule(size, std=std)
    raise ModelError(
        f"there is no rule for the initial value of {name}",
        where=name,
        remedy="name it as transformers' LlamaForCausalLM does, or fill it yourself",
    )


def _size(parameter: nn.Parameter) -> int:
    return prod(getattr(parameter, "ds_shape", parameter.shape))


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(block, first, last + 1) for every block that start … stop - 1 touches."""
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        yield block, max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)


def _block(name: str, rule: Rule, block: int, seed: int) -> Tensor:
    # torch's normal_ gives other values for another count, so a block is always drawn whole.
    count = min(BLOCK, rule.size - block * BLOCK)
    digest = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    values = torch.empty(count, dtype=torch.float32, device="cpu")
    return values.normal_(rule.mean, rule.std, generator=generator)
