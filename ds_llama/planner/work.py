"""What one rank computes in one micro-batch: FLOPs by kind, bytes through memory, operations.

Elementwise work is counted in bytes that cross the device's memory, from the operations that
`ds_llama.model` runs one by one ("eager"); "fused" counts what is left when a compiler makes each
chain of them one kernel. e is the bytes of an element of the training dtype; fp32 is 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ds_llama.config.model import LlamaConfig
from ds_llama.config.run import RecomputeConfig
from ds_llama.planner.gathers import visits, weights


@dataclass(frozen=True)
class Work:
    """Of one pass or of several, added up."""

    matmul_flops: float = 0.0
    attention_flops: float = 0.0
    memory_bytes: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.matmul_flops + other.matmul_flops,
            self.attention_flops + other.attention_flops,
            self.memory_bytes + other.memory_bytes,
            self.operations + other.operations,
        )

    def __mul__(self, times: float) -> Work:
        return Work(
            self.matmul_flops * times,
            self.attention_flops * times,
            self.memory_bytes * times,
            self.operations * times,
        )

    @property
    def flops(self) -> float:
        """Of both kinds."""
        return self.matmul_flops + self.attention_flops


def product(tokens: float, inner: int, outer: int, e: int) -> tuple[Work, Work]:
    """A (tokens, inner) x (inner, outer) product forward, and the two of its backward pass.

    The bytes of its three operands are counted as memory traffic beside its FLOPs, not hidden
    behind them: a tiled kernel fills its first tiles and writes its last ones with its arithmetic
    units idle, so that small products get a smaller share of the peak than large ones.
    """
    flops = 2.0 * tokens * inner * outer
    moved = float(e * (tokens * inner + inner * outer + tokens * outer))
    return Work(flops, 0.0, moved, 0.0), Work(2 * flops, 0.0, 2 * moved, 0.0)


@dataclass(frozen=True)
class Part:
    """A part of the network, forward and backward."""

    forward: Work
    backward: Work


# Operations of a block's halves and of the head, views included, forward and backward: 78 and 146
# a block as a TorchDispatchMode counts them over this model in bf16, shared out by eye.
_OPERATIONS = {"attention": (52, 100), "mlp": (26, 46), "head": (80, 40)}
_FUSED_OPERATIONS = {"attention": (9, 20), "mlp": (5, 12), "head": (30, 20)}
# What DeepSpeed adds, in the same unit: a step, each weight's gradient on its way to a bucket
# (both counted as above over a step of the engine), and each of stage 3's visits to a module, whose
# hooks took as long as 34 to 46 operations (`measure.rates.launch`) beside a step of stage 1 on a
# CPU.
_STEP, _GRADIENT, _VISIT = 220, 18, 40


def engine(
    model: LlamaConfig,
    stage: int,
    rounds: int,
    recompute: RecomputeConfig | None,
    *,
    leaves: bool = False,
) -> Work:
    """The engine's own operations in one step of `rounds` micro-batches."""
    operations = _STEP + rounds * _GRADIENT * len(weights(model))
    if stage == 3:
        operations += rounds * _VISIT * len(visits(model, recompute, leaves=leaves))
    return Work(operations=float(operations))


def attention(
    model: LlamaConfig, micro: int, length: int, *, element_bytes: int, fused: bool
) -> Part:
    """A block's first half: norm, projections, rotation, causal attention, residual.

    Attention's FLOPs are 2 x 2 x d x T^2 / 2 a head forward (scores and values, half the square);
    2.5 times that backward, since its kernel computes the scores again (Dao 2023, section 4.1).
    """
    tokens, e = micro * length, element_bytes
    query = product(tokens, model.hidden_size, model.attention_size, e)
    key = product(tokens, model.hidden_size, model.key_value_size, e)
    square = 2.0 * micro * length * length * model.attention_size
    widths = model.hidden_size, model.attention_size, model.key_value_size
    operations = (_FUSED_OPERATIONS if fused else _OPERATIONS)["attention"]
    kernel = e * (2 * widths[1] + 2 * widths[2])  # q, k, v in, the result out
    forward = _norm(widths[0], e, fused)[0] + kernel + 3 * e * widths[0]
    backward = _norm(widths[0], e, fused)[1] + 2 * kernel + 3 * e * widths[0]
    turned = (2 * e if fused else 2 * e + 36) * (widths[1] + widths[2])
    return Part(
        (query[0] + key[0]) * 2 + Work(0.0, square, tokens * (forward + turned), operations[0]),
        (query[1] + key[1]) * 2
        + Work(0.0, 2.5 * square, tokens * (backward + turned), operations[1]),
    )


def mlp(model: LlamaConfig, tokens: int, *, element_bytes: int, fused: bool) -> Part:
    """A block's second half: norm, gate, up, SwiGLU, down, residual."""
    e, width, inner = element_bytes, model.hidden_size, model.intermediate_size
    one = product(tokens, width, inner, e)
    operations = (_FUSED_OPERATIONS if fused else _OPERATIONS)["mlp"]
    forward, backward = _norm(width, e, fused)
    forward += (3 if fused else 5) * e * inner + 3 * e * width
    backward += (6 if fused else 14) * e * inner + 3 * e * width
    return Part(
        one[0] * 3 + Work(0.0, 0.0, tokens * forward, operations[0]),
        one[1] * 3 + Work(0.0, 0.0, tokens * backward, operations[1]),
    )


def head(model: LlamaConfig, tokens: int, *, element_bytes: int, fused: bool) -> Part:
    """Embedding look-up, last norm, LM head and cross entropy."""
    e, width, vocab = element_bytes, model.hidden_size, model.vocab_size
    one = product(tokens, width, vocab, e)
    per_logit = 2 * e + 8 if fused else 2 * e + 32
    forward, backward = _norm(width, e, fused)
    operations = (_FUSED_OPERATIONS if fused else _OPERATIONS)["head"]
    chunks = ceil(tokens * vocab / 2**27)
    return Part(
        one[0] + Work(0.0, 0.0, tokens * (per_logit * vocab + forward), operations[0] * chunks),
        one[1] + Work(0.0, 0.0, tokens * (backward + 3 * e * width), operations[1]),
    )


def _norm(width: int, e: int, fused: bool) -> tuple[float, float]:
    """Bytes a token of RMSNorm forward and backward."""
    if fused:
        return 2.0 * e * width, 4.0 * e * width
    return (4 * e + 20.0) * width, (3 * e + 60.0) * width


def micro_batch(
    model: LlamaConfig,
    micro: int,
    length: int,
    recompute: RecomputeConfig | None,
    *,
    element_bytes: int,
    fused: bool = False,
) -> tuple[Work, Work, Work]:
    """Forward, backward and recomputed work of one micro-batch of one rank."""
    tokens = micro * length
    parts = {
        "attention": attention(model, micro, length, element_bytes=element_bytes, fused=fused),
        "mlp": mlp(model, tokens, element_bytes=element_bytes, fused=fused),
    }
    top = head(model, tokens, element_bytes=element_bytes, fused=fused)
    block = parts["attention"].forward + parts["mlp"].forward
    layers = model.num_hidden_layers
    again = Work()
    if recompute is not None:
        repeated = block if recompute.part == "block" else parts[recompute.part].forward
        again = repeated * ceil(layers / recompute.every)
    forward = block * layers + top.forward
    backward = (parts["attention"].backward + parts["mlp"].backward) * layers + top.backward
    return forward, backward, again
