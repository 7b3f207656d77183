"""The walk under `torch_autocast`: fp32 weights, multiplied in half precision.

    residual stream, norms       fp32
    what a linear layer takes    a half-precision copy of it: one for each of q, k and v, two for
                                 gate and up, which its backward pass needs; a norm's result itself
                                 is gone with the part (attention, MLP) that it was given to
    weights                      half-precision copies, kept by autograd until their own backward
                                 pass, and by autocast until its region ends with the forward pass
    q, k, v, gate, up, results   half precision; so are their gradients, until x and W get theirs

At stage 3 DeepSpeed's own linear layer (runtime/zero/linear.py:80) keeps x and W as they came, and
copies both in both passes. DeepSpeed's recomputation is outside the region: what is computed again
is computed in fp32 (activation_checkpointing/checkpointing.py:743), as is its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from ds_llama.planner.activations import activations
from ds_llama.planner.gathers import Visit
from ds_llama.planner.settings import Settings
from ds_llama.planner.walk import Walk

_PARTS = {
    **dict.fromkeys(("attention", "q", "k", "v", "o"), "attention"),
    **dict.fromkeys(("mlp", "gate", "up", "down"), "mlp"),
}


class Autocast(Walk):
    """`size` is for fp32, `half` for what is multiplied."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.half = activations(settings, settings.product_width)
        self.wrapped = settings.stage == 3  # linear layers are DeepSpeed's

    def region(self, order: Iterable[Visit]) -> int:
        """Bytes of weights' copies that nothing but autocast keeps: those of recomputed parts, and
        down's, whose backward pass copies the weight again (model/mlp.py:45)."""
        if self.wrapped:
            return 0
        return sum(
            self._copy(visit)
            for visit in order
            if visit.way == "forward"
            and visit.weights
            and visit.kind in _PARTS
            and (visit.kind == "down" or not self._keeps(visit, _PARTS[visit.kind]))
        )

    def _copy(self, visit: Visit) -> int:
        elements = sum(self.weights[name].elements for name in visit.weights)
        return self.settings.product_width * elements

    def _again(self, visit: Visit) -> bool:
        """Whether this is of a part in the backward pass that is computed again, in fp32."""
        return visit.way != "forward" and self._part(visit) in ("block", _PARTS[visit.kind])

    # --- forward ---------------------------------------------------------------------------------

    def _linear(self, visit: Visit, given: int, made: int) -> None:
        """A linear layer; `given`: bytes of the copy of what it is given, if it takes one."""
        copy = self._copy(visit)
        self._hold(given + copy + made)
        if self.wrapped or not self._keeps(visit, _PARTS[visit.kind]):
            self._free(given)
        if self.wrapped:
            self._free(copy)

    def _ends(self, visit: Visit) -> None:
        """A part's result is added to the stream; what the norm gave is gone, unless something has
        kept it."""
        size, part = self.size, _PARTS[visit.kind]
        keeps = self._keeps(visit, part)
        if (keeps and not self.wrapped) or self._part(visit) == "block":
            self._free(size.hidden)
        self._hold(size.hidden)
        self._free(self.half.hidden)
        if self._part(visit) == "block":
            self._free(size.rms + (size.hidden if part == "mlp" else 0))  # the stream's middle

    def _q(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._q(visit)
        self._linear(visit, self.half.hidden, self.half.query)

    def _k(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._k(visit)
        self._linear(visit, self.half.hidden, self.half.key)

    def _v(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._v(visit)
        self._linear(visit, self.half.hidden, self.half.key)
        self._attend(self.half)

    def _o(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._o(visit)
        self._linear(visit, 0, self.half.hidden)
        if not self._keeps(visit, "attention"):
            self._free(self.half.attention)
        self._ends(visit)

    def _gate(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._gate(visit)
        self._linear(visit, self.half.hidden, self.half.inner)

    def _up(self, visit: Visit) -> None:
        self._gate(visit)

    def _down(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._down(visit)
        inner = self.half.inner
        self._hold(inner)
        self._linear(visit, 0, self.half.hidden)
        self._free(inner)
        if not self._keeps(visit, "mlp"):
            self._free(2 * inner)
        self._ends(visit)

    # --- backward --------------------------------------------------------------------------------

    def _linear_backward(self, visit: Visit, taken: int, given: int, gone: int = 0) -> None:
        """dx and dW in half precision, then in fp32. In bytes: taken, the result's gradient, which
        goes; given, dx; gone, what goes besides when dx is there."""
        copy, wide = self._copy(visit), 2 * given
        copied = visit.kind != "o"  # what it is given is in half precision already
        self._hold(given + copy)
        if self.wrapped:
            self._peek(copy + given * copied)
            if copied:
                self._hold(wide)
                self._free(given)
            self._gradient(visit, copy + taken + gone)
            return
        self._free(taken + copy + given * copied)
        self._gradient(visit, copy)
        if copied:
            self._hold(wide)
            self._free(given + gone)

    def _narrowed(self, visit: Visit) -> None:
        """The gradient of a part's result, out of the stream's; what is computed again in fp32
        gets it in that dtype at its first module, and keeps it to its last."""
        if self._part(visit) != "block":
            self._hold(self.half.hidden)

    _attention_backward = _mlp_backward = _narrowed

    def _down_backward(self, visit: Visit, free: int = 0) -> None:
        """The product is made again for dW; then the weight is copied for what comes before it."""
        if self._again(visit):
            self._hold(wide := self._widened(visit))
            return super()._down_backward(visit, wide)
        inner, copy = self.half.inner, self._copy(visit)
        with self.ledger.held("gradients", 2 * copy):
            self._peek(2 * inner + copy)
            self._peek(3 * inner)
        self._gradient(visit, self.half.hidden)

    def _up_backward(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._up_backward(visit)
        self._linear_backward(visit, self.half.inner, self.half.hidden)

    def _gate_backward(self, visit: Visit) -> None:
        if self._again(visit):
            super()._gate_backward(visit)
            return self._free(self._kept_gradient(visit))
        self._linear_backward(visit, self.half.inner, self.half.hidden, self._added)

    def _o_backward(self, visit: Visit, free: int = 0) -> None:
        if self._again(visit):
            self._hold(wide := self._widened(visit))
            return super()._o_backward(visit, wide)
        self._linear_backward(visit, self.half.hidden, self.half.query)

    def _v_backward(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._v_backward(visit)
        self._attend_backward(self.half)
        self._linear_backward(visit, self.half.key, self.half.hidden)

    def _k_backward(self, visit: Visit) -> None:
        if self._again(visit):
            return super()._k_backward(visit)
        self._linear_backward(visit, self.half.key, self.half.hidden, self.size.hidden)

    def _q_backward(self, visit: Visit) -> None:
        if self._again(visit):
            super()._q_backward(visit)
            return self._free(self._kept_gradient(visit))
        self._linear_backward(visit, self.half.query, self.half.hidden, self._added)

    @property
    def _added(self) -> int:
        """What goes when the last dx of a part is added to the others: itself, and the norm's
        result where DeepSpeed's linear layers have kept it."""
        return self.size.hidden * (2 if self.wrapped else 1)

    def _widened(self, visit: Visit) -> int:
        return 0 if self._part(visit) == "block" else self.size.hidden

    def _kept_gradient(self, visit: Visit) -> int:
        return 0 if self._part(visit) == "block" else self.half.hidden
