"""Which weights ZeRO-3 gathers in one micro-batch, by replaying what its coordinator does.

DeepSpeed's coordinator (runtime/zero/partitioned_param_coordinator.py) fetches a module's weights
before it runs, fetches some of what comes next, and drops a weight after use unless it comes back
within `stage3_max_reuse_distance` elements. Whether a weight is gathered once, twice or three times
a micro-batch follows from the order of use alone, so the order is replayed here; a formula would
have to know where in the model the reuse distance ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ds_llama.config.model import LlamaConfig
from ds_llama.config.run import RecomputeConfig
from ds_llama.planner.coordinator import Coordinator, Limits, Trace


@dataclass(frozen=True)
class Gathers:
    """Of one micro-batch: elements gathered (a weight counts each time), and in how many calls.

    most_live: the most elements that were whole at one time, weights that persist left out.
    """

    elements: int
    calls: int
    most_live: int
    persistent_elements: int


def weights(model: LlamaConfig) -> dict[str, int]:
    """Elements of every weight that a module of its own reads, in the order of registration."""
    return _weights(
        *(model.num_hidden_layers, model.hidden_size, model.intermediate_size),
        *(model.attention_size, model.key_value_size, model.attention_bias, model.mlp_bias),
        *(model.num_embedding_parameters, model.tie_word_embeddings),
    )


@lru_cache(maxsize=32)
def _weights(
    layers: int,
    width: int,
    inner: int,
    query: int,
    key: int,
    bias: bool,
    mlp_bias: bool,
    embedding: int,
    tied: bool,
) -> dict[str, int]:
    block = {
        "input_layernorm": width,
        "q": width * query + query * bias,
        "k": width * key + key * bias,
        "v": width * key + key * bias,
        "o": width * query + width * bias,
        "post_attention_layernorm": width,
        "gate": width * inner + inner * mlp_bias,
        "up": width * inner + inner * mlp_bias,
        "down": width * inner + width * mlp_bias,
    }
    sizes = {"embed": embedding}
    for layer in range(layers):
        sizes |= {f"{layer}.{name}": size for name, size in block.items()}
    sizes["norm"] = width
    if not tied:
        sizes["head"] = embedding
    return sizes


@dataclass(frozen=True)
class Visit:
    """A module asked for its weights, which may be none: a module of modules is asked too, and what
    comes next is fetched then (parameter_offload.py:531, :573).

    way: "forward", "backward", or "again" for what is recomputed in the backward pass.
    """

    kind: str
    layer: int
    way: str
    weights: tuple[str, ...] = ()


_ATTENTION = ("attention", "q", "k", "v", "o")
_MLP = ("mlp", "gate", "up", "down")
_BLOCK = ("input_layernorm", *_ATTENTION, "post_attention_layernorm", *_MLP)
_BACKWARD_ATTENTION = ("attention", "o", "v", "k", "q")
_BACKWARD_MLP = ("mlp", "down", "up", "gate")
_CONTAINERS = frozenset({"attention", "mlp"})
# In the order of `ds_id`, by which a leaf's weights are queued; its gradients are reduced so too.
_LEAF = ("q", "k", "v", "o", "gate", "up", "down", "input_layernorm", "post_attention_layernorm")


def visits(
    model: LlamaConfig, recompute: RecomputeConfig | None, *, leaves: bool = False
) -> list[Visit]:
    """Modules in the order in which forward and backward come to them. leaves: blocks are visited
    whole, and what is recomputed passes no hook (zero/compiling.py)."""
    return _visits(model.num_hidden_layers, model.tie_word_embeddings, recompute, leaves)


@lru_cache(maxsize=32)
def _visits(count: int, tied: bool, recompute: RecomputeConfig | None, leaves: bool) -> list[Visit]:
    head = ("embed" if tied else "head",)
    layers = range(count)
    way = "forward"
    order = [Visit("llama", 0, way), Visit("model", 0, way), Visit("embed", 0, way, ("embed",))]
    for layer in layers:
        if leaves:
            order.append(_leaf(layer, way))
            continue
        order.append(Visit("block", layer, way))
        order += _parts(_BLOCK, layer, way)
    order += [Visit("norm", 0, way, ("norm",)), Visit("head", 0, way, head)]
    way = "backward"
    order += [Visit("llama", 0, way), Visit("head", 0, way, head), Visit("model", 0, way)]
    order.append(Visit("norm", 0, way, ("norm",)))
    for layer in reversed(layers):
        if leaves:
            order.append(_leaf(layer, way))
            continue
        order.append(Visit("block", layer, way))
        order += _backward(layer, recomputed(recompute, layer))
    return [*order, Visit("embed", 0, way, ("embed",))]


def recomputed(recompute: RecomputeConfig | None, layer: int) -> str | None:
    """What of a layer is recomputed: "block", "attention", "mlp" or nothing."""
    if recompute is None or layer % recompute.every:
        return None
    return recompute.part


def trace(
    model: LlamaConfig, recompute: RecomputeConfig | None, *, leaves: bool = False
) -> list[tuple[str, ...]]:
    """The weights that each visit asks for."""
    return [visit.weights for visit in visits(model, recompute, leaves=leaves)]


def _leaf(layer: int, way: str) -> Visit:
    return Visit("block", layer, way, tuple(f"{layer}.{name}" for name in _LEAF))


def _parts(kinds: Sequence[str], layer: int, way: str) -> Iterator[Visit]:
    for kind in kinds:
        yield Visit(kind, layer, way, () if kind in _CONTAINERS else (f"{layer}.{kind}",))


def _backward(layer: int, part: str | None) -> Iterator[Visit]:
    """One block's backward pass; what is recomputed runs forward just before its own part."""
    if part == "block":
        yield from _parts(_BLOCK, layer, "again")
    yield from _parts(_BACKWARD_MLP[:1], layer, "backward")
    if part == "mlp":
        yield from _parts(_MLP[1:], layer, "again")
    yield from _parts((*_BACKWARD_MLP[1:], "post_attention_layernorm"), layer, "backward")
    yield from _parts(_BACKWARD_ATTENTION[:1], layer, "backward")
    if part == "attention":
        yield from _parts(_ATTENTION[1:], layer, "again")
    yield from _parts((*_BACKWARD_ATTENTION[1:], "input_layernorm"), layer, "backward")


def persistent(sizes: dict[str, int], limits: Limits) -> set[str]:
    """Weights that stay whole between uses (partition_parameters.py:1292), in order, up to both
    thresholds."""
    kept, total = set(), 0
    for name, size in sizes.items():
        if size <= limits.param_persistence_threshold:
            if total + size > limits.model_persistence_threshold:
                continue
            kept.add(name)
            total += size
    return kept


def replay(order: Trace, sizes: dict[str, int], limits: Limits, ranks: int = 1) -> Gathers:
    """Fetch, prefetch and release along a complete trace, persistent weights whole already.

    What `ranks` gather is padded to a multiple of them; what decides is not.
    """
    return _replay(tuple(order), tuple(sizes.items()), limits, ranks)


@lru_cache(maxsize=32)
def _replay(
    order: tuple[Sequence[str], ...], named: tuple[tuple[str, int], ...], limits: Limits, ranks: int
) -> Gathers:
    sizes, buffers = dict(named), {name: -(-size // ranks) * ranks for name, size in named}
    stays = persistent(sizes, limits)
    coordinator = Coordinator(order, sizes, limits, stays, buffers)
    for step in range(len(order)):
        coordinator.run(step)
    kept = sum(buffers[name] for name in stays)
    return Gathers(coordinator.elements, coordinator.calls, coordinator.most_live, kept)


class Window(NamedTuple):
    """Elements of gathered weights, and of buffers for them: the most while a module's are fetched,
    those while it runs and those after it; and of the copies within the node that hpZ makes of a
    weight when it is let go of first."""

    most: int
    during: int
    after: int
    copies: int


def windows(
    order: Trace, sizes: dict[str, int], limits: Limits, ranks: int, copies: dict[str, int]
) -> list[Window]:
    """One for each module. `copies`: elements of a rank's hpZ copy of each weight, if it has any.

    Several weights fetched at once arrive in one flat buffer, out of which each is copied when the
    first is waited for; it goes when the last has been (partition_parameters.py:741, :1341). A
    weight fetched alone is a view of its buffer, and one rank alone needs no buffer.
    """
    buffers = sizes if ranks == 1 else {n: -(-size // ranks) * ranks for n, size in sizes.items()}
    weights = zip(sizes, sizes.values(), buffers.values(), strict=True)
    return _windows(tuple(order), tuple(weights), limits, ranks == 1, tuple(copies.items()))


# A plan's strategies gather alike, whatever they offload, and so do worlds that divide every weight
# evenly: cached, they are played once.
@lru_cache(maxsize=32)
def _windows(
    order: tuple[Sequence[str], ...],
    weights: tuple[tuple[str, int, int], ...],
    limits: Limits,
    alone: bool,
    copied: tuple[tuple[str, int], ...],
) -> list[Window]:
    sizes = {name: size for name, size, _ in weights}
    buffers = None if alone else {name: size for name, _, size in weights}
    copies = dict(copied)
    coordinator = Coordinator(order, sizes, limits, persistent(sizes, limits), buffers)
    found = []
    for step in range(len(order)):
        coordinator.run(step)
        made = sum(copies.pop(name, 0) for name in coordinator.released) if copies else 0
        found.append(Window(coordinator.most, coordinator.during, coordinator.held, made))
    return found
