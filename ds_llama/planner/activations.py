"""Bytes of one micro-batch's activations, tensor by tensor, as `ds_llama.model` makes them.

N tokens of the micro-batch; e bytes an element of the training dtype; D, A, K, F the widths of the
model, the queries, the keys and the feed-forward; H query heads, V vocabulary. The forward pass
keeps for each block (model/attention.py, model/mlp.py, model/norm.py):

    input_layernorm            what it gives, 1/rms                 e N D + 4 N
    attention                  q, k, v, the result, log-sum-exp     e N (2 A + 2 K) + 4 N H
                               (fp32: k, v for every head of q      e N (4 A) + 4 N H)
    o                          the middle of the residual stream    e N D
    post_attention_layernorm   what it gives, 1/rms                 e N D + 4 N
    gate, up                   both                                 e N (2 F)
    down                       the residual stream                  e N D

and the head its two products, dx and dW, instead of the logits (model/loss.py). What else is listed
here lives inside one operation: it makes peaks and is gone. Under `torch_autocast` both are needed:
what fp32 takes and what half precision takes (planner/autocast.py says which is where).
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_llama.planner.settings import Settings

# model/loss.py: elements of a chunk of logits, and of the part of it that is in fp32 at a time, on
# an accelerator and on a CPU; rows of dW that are worked on at a time.
_CHUNK = (2**27, 2**25)
_TILE = (2**24, 2**18)
_BLOCK = 4096


@dataclass(frozen=True)
class Activations:
    """Sizes in bytes, but `rows` and `tile_rows`."""

    hidden: int  # e N D, one tensor of the residual stream's shape
    query: int
    key: int
    inner: int
    log_sum: int
    rms: int
    norm: int  # inside a norm: the fp32 copy, its product, and the product in the training dtype
    norm_backward: int
    rotate_query: int
    rotate_key: int
    rotary: int  # cosines and sines, fp32, up to the next power of two
    attended: int  # keys and values as attention keeps them
    halves: int  # kept besides by two halves of attention on a CPU: their results, and a mask
    attend: int  # inside attention, where those are joined

    @property
    def attention(self) -> int:
        """What attention keeps in all, its result included."""
        return 2 * self.query + self.attended + self.log_sum + self.halves


def activations(settings: Settings, element_bytes: int) -> Activations:
    """Of the micro-batch that the settings name, all in a dtype of so many bytes."""
    model, e, tokens = settings.model, element_bytes, settings.tokens
    width, query, key = model.hidden_size, model.attention_size, model.key_value_size
    wide = e < 4  # norms and rotations work in fp32, and copy what is not
    sequence = settings.resolved.run.data.sequence_length
    halved = settings.on_cpu and 256 < sequence <= 512  # model/attention.py:85
    turn = 8 + e if wide else 4
    repeated = key < query and not (wide or settings.on_cpu)  # model/attention.py:64
    return Activations(
        hidden=e * tokens * width,
        query=e * tokens * query,
        key=e * tokens * key,
        inner=e * tokens * model.intermediate_size,
        log_sum=4 * tokens * model.num_attention_heads,
        rms=4 * tokens,
        norm=tokens * width * (8 + e if wide else 8),
        norm_backward=tokens * width * (12 + e if wide else 4),
        rotate_query=tokens * query * turn,
        rotate_key=tokens * key * turn,
        rotary=4 * model.head_dim * (1 << (sequence - 1).bit_length()),
        attended=2 * e * tokens * (query if repeated else key),
        halves=e * (tokens * query + (sequence - sequence // 2) * sequence) if halved else 0,
        attend=e * tokens * query if halved else 0,
    )


@dataclass(frozen=True)
class Head:
    """The LM head with its loss: what forward keeps, and what it needs meanwhile, in bytes."""

    kept_hidden: int
    kept_weight: int
    working: int
    backward: int


def head(settings: Settings) -> Head:
    """The chunked cross entropy of `model/loss.py`.

    dW is summed in fp32 unless two products in bf16 make it; then they are added as they come.
    Under autocast it works on copies of x and of the weight.
    """
    model, e, tokens = settings.model, settings.product_width, settings.tokens
    vocabulary, width = model.vocab_size, model.hidden_size
    copies = e * (tokens + vocabulary) * width if e < settings.width else 0
    chunk, tile = _CHUNK[settings.on_cpu], _TILE[settings.on_cpu]
    rows = max(min(max(chunk // vocabulary // 64 * 64, 64), tokens), 1)
    narrow = settings.multiplies_in == "bfloat16" and tokens <= 2 * rows
    tile_rows = min(max(tile // vocabulary, 1), rows)
    buffer = e * rows * vocabulary
    softmax = 2 * 4 * tile_rows * vocabulary
    block = min(_BLOCK, vocabulary) * width
    sums = e if narrow else 4
    block = min(_BLOCK, vocabulary) * width
    # A chunk's product, which is added to the sum in the sum's dtype unless it is the first.
    product = block * ((0 if narrow else e) if tokens <= rows else e + (4 if sums != e else 0))
    stretch = e * vocabulary * width if settings.multiplies_in == "float16" else 0
    # Scaled block by block in fp32: a copy, where it is not fp32 already, and the product.
    of_weight = block * (4 if sums == 4 else 8)
    of_hidden = min(_BLOCK, tokens) * width * (4 if e == 4 else 8)
    return Head(
        kept_hidden=e * tokens * width,
        kept_weight=sums * vocabulary * width,
        working=max(stretch - sums * vocabulary * width, buffer + max(softmax, product))
        + 24 * tokens
        + copies,
        backward=max(of_weight, of_hidden - settings.width * vocabulary * width),
    )
