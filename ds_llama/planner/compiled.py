"""The walk where blocks are compiled: one visit each, forward and backward.

Inductor's kernels work in registers where operations would make tensors, and write to a buffer what
a product of matrices or attention is to read. Of a block its partitioner keeps

    both norms     what each gives, 1/rms                 2 e N D + 8 N
    attention      turned q and k, v, the result, lse     e N (2 A + 2 K) + 4 N H
    o              what it gives, and not the sum         e N D
    gate, up       both, and their product                e N (3 F)
    down           the residual stream                    e N D

the product beyond what operations keep, since another product of matrices reads it. All gradients
of a block are there together when its backward pass ends. The order of buffers is that of what
torch 2.13 writes for a block on a CPU; another shape may have another, by its own peaks
(torch/_inductor/memory.py).
"""

from __future__ import annotations

from ds_llama.planner.gathers import Visit
from ds_llama.planner.walk import Walk

_GRADIENTS = "gradients"


class Compiled(Walk):
    """Sizes as the other walk has them, less what only its operations need."""

    def _block(self, visit: Visit) -> None:
        self._forward(keeps=self._part(visit) is None)

    def _forward(self, *, keeps: bool) -> None:
        size, gone = self.size, 0 if keeps else 1
        self._hold(size.hidden + size.rms)
        self._hold(size.query + 2 * size.key)
        self._free(gone * (size.hidden + size.rms))
        self._hold(size.query + size.key)  # turned
        self._free(size.key + gone * size.query)
        self._hold(size.query + size.log_sum + size.halves)
        self._peek(size.attend)
        self._free(gone * (size.query + 2 * size.key + size.log_sum + size.halves))
        # The projection takes the place of q as it was before it was turned.
        self._hold(gone * size.query)
        self._free(size.query)
        self._hold(size.hidden)
        self._free(gone * size.query)
        self._hold(size.hidden + size.rms)
        self._hold(2 * size.inner)
        self._free(gone * (size.hidden + size.rms + size.inner))
        self._hold((1 - gone) * size.inner)
        self._hold(size.hidden)
        self._free(gone * (size.inner + size.hidden))

    def _block_backward(self, visit: Visit) -> None:
        size, width = self.size, self.settings.width
        if self._part(visit) is not None:
            self._forward(keeps=True)
        made = {name.partition(".")[2]: self.weights[name].elements for name in visit.weights}
        # gate and up give way to their gradients
        self._hold(2 * size.inner)
        self._free(2 * size.inner)
        self._hold(2 * size.hidden)  # through gate, through up
        self._hold(size.hidden)  # of the middle of the stream
        self._hold(size.query)
        self._hold(size.query + 2 * size.key)
        self._free(size.query + 2 * size.key + size.log_sum + size.halves)
        # turned back; through v, k and q
        self._hold(size.key)
        self._free(size.key)
        self._free(size.query)
        self._hold(2 * size.hidden)
        self._hold(size.query)
        self._free(size.query)
        self._hold(size.hidden)
        for name, free in (
            ("v", size.key),
            ("k", size.key),
            ("o", size.query),
            ("q", size.query + size.hidden),
            ("input_layernorm", 7 * size.hidden + 2 * size.rms),
            ("post_attention_layernorm", 0),
            ("down", size.inner + size.hidden),
            ("up", size.inner),
            ("gate", size.inner + size.hidden),
        ):
            self.ledger.hold(_GRADIENTS, width * made[name])
            self._free(free)
        self._made(visit)
