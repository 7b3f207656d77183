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

from ds_llama.config.model import LlamaConfig
from ds_llama.config.run import RecomputeConfig

Trace = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Limits:
    """The five settings that decide, in elements, under DeepSpeed's names for them."""

    prefetch_bucket_size: int
    max_live_parameters: int
    max_reuse_distance: int
    param_persistence_threshold: int
    model_persistence_threshold: int


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
    width, inner = model.hidden_size, model.intermediate_size
    query, key = model.attention_size, model.key_value_size
    bias = model.attention_bias
    block = {
        "input_layernorm": width,
        "q": width * query + query * bias,
        "k": width * key + key * bias,
        "v": width * key + key * bias,
        "o": width * query + width * bias,
        "post_attention_layernorm": width,
        "gate": width * inner + inner * model.mlp_bias,
        "up": width * inner + inner * model.mlp_bias,
        "down": width * inner + width * model.mlp_bias,
    }
    sizes = {"embed": model.num_embedding_parameters}
    for layer in range(model.num_hidden_layers):
        sizes |= {f"{layer}.{name}": size for name, size in block.items()}
    sizes["norm"] = width
    if not model.tie_word_embeddings:
        sizes["head"] = model.num_embedding_parameters
    return sizes


_ATTENTION = ("q", "k", "v", "o")
_MLP = ("gate", "up", "down")
_BLOCK = ("input_layernorm", *_ATTENTION, "post_attention_layernorm", *_MLP)


def trace(model: LlamaConfig, recompute: RecomputeConfig | None) -> list[tuple[str, ...]]:
    """Modules in the order in which forward and backward ask for their weights."""
    head = "embed" if model.tie_word_embeddings else "head"
    layers = range(model.num_hidden_layers)
    order = [("embed",)]
    order += [(f"{layer}.{name}",) for layer in layers for name in _BLOCK]
    order += [("norm",), (head,), (head,), ("norm",)]
    for layer in reversed(layers):
        order += [(f"{layer}.{name}",) for name in _backward(layer, recompute)]
    return [*order, ("embed",)]


def _backward(layer: int, recompute: RecomputeConfig | None) -> Iterator[str]:
    """One block's backward pass; what is recomputed runs forward just before its own part."""
    part = recompute.part if recompute is not None and layer % recompute.every == 0 else None
    if part == "block":
        yield from _BLOCK
    if part == "mlp":
        yield from _MLP
    yield from reversed(_MLP)
    yield "post_attention_layernorm"
    if part == "attention":
        yield from _ATTENTION
    yield from reversed(_ATTENTION)
    yield "input_layernorm"


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


def replay(order: Trace, sizes: dict[str, int], limits: Limits) -> Gathers:
    """Fetch, prefetch and release along a complete trace, persistent weights whole already."""
    stays = persistent(sizes, limits)
    coordinator = _Coordinator(order, sizes, limits, stays)
    for step in range(len(order)):
        coordinator.run(step)
    kept = sum(sizes[name] for name in stays)
    return Gathers(coordinator.elements, coordinator.calls, coordinator.most_live, kept)


class _Coordinator:
    """The coordinator's state along one micro-batch; its names for the same things."""

    def __init__(
        self, order: Trace, sizes: dict[str, int], limits: Limits, stays: set[str]
    ) -> None:
        self.order, self.sizes, self.limits, self.stays = order, sizes, limits, stays
        self.queue = [(name, step) for step, names in enumerate(order) for name in names]
        self.position = 0  # of the queue's left end
        self.available = set(stays)
        self.fetched_for: dict[str, int] = {}
        self.elements = self.calls = self.live = self.most_live = 0
        before = [0]
        for names in order:
            before.append(before[-1] + sum(sizes[name] for name in names))
        self.before = before
        uses: dict[str, list[int]] = {}
        for name, step in self.queue:
            uses.setdefault(name, []).append(step)
        self.uses = uses

    def run(self, step: int) -> None:
        """One module: fetch it, fetch ahead, use it, drop what may be dropped."""
        names = self.order[step]
        self._gather([name for name in names if name not in self.available])
        wanted = sum(self.fetched_for.get(name, -1) < step for name in names)
        for name, used_at in self.queue[self.position : self.position + wanted]:
            self.fetched_for[name] = used_at
        self.position += wanted
        self._prefetch()
        for name in names:
            if name not in self.stays and not self._comes_back(name, step + 1):
                self.available.discard(name)
                self.live -= self.sizes[name]

    def _gather(self, names: Sequence[str]) -> None:
        if names:
            elements = sum(self.sizes[name] for name in names)
            self.elements += elements
            self.calls += 1
            self.live += elements
            self.most_live = max(self.most_live, self.live)
            self.available.update(names)

    def _prefetch(self) -> None:
        room = min(self.limits.max_live_parameters - self.live, self.limits.prefetch_bucket_size)
        found: list[str] = []
        elements = 0
        while self.position < len(self.queue) and elements < room:
            name, used_at = self.queue[self.position]
            self.position += 1
            self.fetched_for[name] = max(self.fetched_for.get(name, -1), used_at)
            if name not in self.available and name not in found:
                found.append(name)
                elements += self.sizes[name]
        self._gather(found)

    def _comes_back(self, name: str, step: int) -> bool:
        if self.fetched_for.get(name, -1) > step:
            return True
        later = next((use for use in self.uses[name] if use >= step), None)
        if later is None:
            return False
        return self.before[later] - self.before[step] < self.limits.max_reuse_distance
