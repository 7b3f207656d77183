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
from itertools import accumulate
from typing import NamedTuple

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


def visits(model: LlamaConfig, recompute: RecomputeConfig | None) -> list[Visit]:
    """Modules in the order in which forward and backward come to them."""
    return _visits(model.num_hidden_layers, model.tie_word_embeddings, recompute)


@lru_cache(maxsize=32)
def _visits(count: int, tied: bool, recompute: RecomputeConfig | None) -> list[Visit]:
    head = ("embed" if tied else "head",)
    layers = range(count)
    way = "forward"
    order = [Visit("llama", 0, way), Visit("model", 0, way), Visit("embed", 0, way, ("embed",))]
    for layer in layers:
        order.append(Visit("block", layer, way))
        order += _parts(_BLOCK, layer, way)
    order += [Visit("norm", 0, way, ("norm",)), Visit("head", 0, way, head)]
    way = "backward"
    order += [Visit("llama", 0, way), Visit("head", 0, way, head), Visit("model", 0, way)]
    order.append(Visit("norm", 0, way, ("norm",)))
    for layer in reversed(layers):
        order.append(Visit("block", layer, way))
        order += _backward(layer, recomputed(recompute, layer))
    return [*order, Visit("embed", 0, way, ("embed",))]


def recomputed(recompute: RecomputeConfig | None, layer: int) -> str | None:
    """What of a layer is recomputed: "block", "attention", "mlp" or nothing."""
    if recompute is None or layer % recompute.every:
        return None
    return recompute.part


def trace(model: LlamaConfig, recompute: RecomputeConfig | None) -> list[tuple[str, ...]]:
    """The weights that each visit asks for."""
    return [visit.weights for visit in visits(model, recompute)]


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


def replay(order: Trace, sizes: dict[str, int], limits: Limits) -> Gathers:
    """Fetch, prefetch and release along a complete trace, persistent weights whole already."""
    return _replay(tuple(order), tuple(sizes.items()), limits)


@lru_cache(maxsize=32)
def _replay(
    order: tuple[Sequence[str], ...], named: tuple[tuple[str, int], ...], limits: Limits
) -> Gathers:
    sizes = dict(named)
    stays = persistent(sizes, limits)
    coordinator = _Coordinator(order, sizes, limits, stays)
    for step in range(len(order)):
        coordinator.run(step)
    kept = sum(sizes[name] for name in stays)
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
    coordinator = _Coordinator(order, sizes, limits, persistent(sizes, limits), buffers)
    found = []
    for step in range(len(order)):
        coordinator.run(step)
        made = sum(copies.pop(name, 0) for name in coordinator.released) if copies else 0
        found.append(Window(coordinator.most, coordinator.during, coordinator.held, made))
    return found


@dataclass
class _Fetch:
    """Weights fetched in one call, and those of them that no module has waited for."""

    elements: int
    buffer: int
    waiting: set[str]
    copied: bool = False


class _Coordinator:
    """The coordinator's state along one micro-batch; its names for the same things."""

    def __init__(
        self,
        order: Trace,
        sizes: dict[str, int],
        limits: Limits,
        stays: set[str],
        buffers: dict[str, int] | None = None,
    ) -> None:
        self.order, self.sizes, self.limits, self.stays = order, sizes, limits, stays
        self.buffers = buffers
        self.held = self.most = self.during = 0
        self.inflight: dict[str, _Fetch] = {}
        self.released = set[str]()
        self.whole: dict[str, int] = {}
        self.queue = [(name, step) for step, names in enumerate(order) for name in names]
        self.position = 0  # of the queue's left end
        self.available = set(stays)
        self.fetched_for: dict[str, int] = {}
        self.elements = self.calls = self.live = self.most_live = 0
        of_each = (sum([sizes[name] for name in names]) if names else 0 for names in order)
        self.before = [0, *accumulate(of_each)]
        uses: dict[str, list[int]] = {}
        for name, step in self.queue:
            uses.setdefault(name, []).append(step)
        self.uses = uses

    def run(self, step: int) -> None:
        """One module: fetch it, fetch ahead, use it, drop what may be dropped."""
        names = self.order[step]
        self.released = set()
        if not names:
            self._prefetch()
            self.most = self.during = self.held
            return
        self._gather([name for name in names if name not in self.available])
        wanted = sum(self.fetched_for.get(name, -1) < step for name in names)
        for name, used_at in self.queue[self.position : self.position + wanted]:
            self.fetched_for[name] = used_at
        self.position += wanted
        self.most = self.held
        for name in names:
            self._wait(name)
        self._prefetch()
        self.during = self.held
        self.most = max(self.most, self.held)
        for name in names:
            if name not in self.stays and not self._comes_back(name, step + 1):
                self.released.add(name)
                self.available.discard(name)
                self.live -= self.sizes[name]
                self.held -= self.whole.pop(name, 0)

    def _gather(self, names: Sequence[str]) -> None:
        if names:
            elements = sum(self.sizes[name] for name in names)
            self.elements += elements
            self.calls += 1
            self.live += elements
            self.most_live = max(self.most_live, self.live)
            self.available.update(names)
            if self.buffers is None:
                self.whole.update({name: self.sizes[name] for name in names})
                self.held += elements
                return
            buffer = sum(self.buffers[name] for name in names)
            fetch = _Fetch(elements, buffer, set(names))
            self.inflight.update(dict.fromkeys(names, fetch))
            self.held += buffer

    def _wait(self, name: str) -> None:
        fetch = self.inflight.pop(name, None)
        if fetch is None:
            return
        if fetch.elements == self.sizes[name]:  # it came alone
            self.whole[name] = fetch.buffer
            return
        if not fetch.copied:
            self.whole.update({other: self.sizes[other] for other in fetch.waiting})
            self.held += fetch.elements
            fetch.copied = True
        self.most = max(self.most, self.held)
        fetch.waiting.discard(name)
        if not fetch.waiting:
            self.held -= fetch.buffer

    def _prefetch(self) -> None:
        if self.position == len(self.queue):
            return
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
        for use in self.uses[name]:
            if use >= step:
                return self.before[use] - self.before[step] < self.limits.max_reuse_distance
        return False
