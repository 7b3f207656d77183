"""One micro-batch, module by module: what is held, and what each operation needs meanwhile.

    forward    each block leaves what its backward pass needs (planner/activations.py)
    head       leaves dx and dW; the logits come and go in chunks
    backward   each block gives its activations back and makes gradients, which the stage's reducer
               (planner/gradients.py) takes, averages and thins out

Blocks are alike, so little is learned from walking through all of them; but buckets, prefetches and
reuse distances do not end where blocks end, and a walk costs a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ds_llama.planner.activations import activations, head
from ds_llama.planner.gathers import Visit, recomputed
from ds_llama.planner.gradients import Reducer
from ds_llama.planner.ledger import Ledger
from ds_llama.planner.settings import Settings, Weight

_ACTIVATIONS, _GRADIENTS, _LOGITS, _PARAMETERS = "activations", "gradients", "logits", "parameters"


@dataclass(frozen=True)
class Window:
    """Bytes of gathered weights while a module runs and after it (planner/gathers.py), and of the
    copies within the node that hpZ makes of what is let go."""

    during: int = 0
    after: int = 0
    copies: int = 0


class Walk:
    """Plays micro-batches into a ledger. `windows`: one for each visit; None below stage 3."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        reducer: Reducer,
        order: Sequence[Visit],
        windows: Sequence[Window] | None,
    ) -> None:
        self.settings, self.ledger, self.reducer = settings, ledger, reducer
        self.order, self.windows = order, windows
        self.size, self.head = activations(settings), head(settings)
        self.weights = {weight.name: weight for weight in settings.weights}
        self.tied = settings.model.tie_word_embeddings
        self.gathered = self.graph = self.copies = 0
        self.first = True
        kinds = {(visit.kind, visit.way) for visit in order}
        steps = {(kind, way): self._step(kind, way) for kind, way in kinds}
        self.plays = [(visit, steps[visit.kind, visit.way]) for visit in order]
        self.split = next(i for i, visit in enumerate(order) if visit.way != "forward")

    # --- the two passes --------------------------------------------------------------------------

    def forward(self) -> None:
        """From the token ids to the loss."""
        self.ledger.hold(_ACTIVATIONS, 16 * self.settings.tokens)  # ids and labels, int64
        self._play(0, self.split)

    def backward(self) -> None:
        """From the loss to the last gradient; the reducer is told of each."""
        self._play(self.split, len(self.order))
        self.ledger.free(_ACTIVATIONS, 16 * self.settings.tokens)

    def finish(self) -> None:
        """After the backward pass: the loss dies, and with it the graph. Checkpointed parts have
        their inputs there as plain attributes (checkpointing.py:582), which no backward frees."""
        self._free(self.graph)
        self._gathered(self.windows[-1].after if self.windows is not None else 0)
        self.graph = 0
        self.first = False

    def updated(self) -> None:
        """After the update, which makes hpZ's copies worthless."""
        self.ledger.free(_PARAMETERS, self.copies)
        self.copies, self.first = 0, True

    def _play(self, start: int, stop: int) -> None:
        plays = self.plays[start:stop]
        if self.windows is None:
            for visit, step in plays:
                if step is not None:
                    step(visit)
            return
        last = len(self.order) - 1  # the embedding's, whose input has no gradient, waits
        for place, (visit, step) in enumerate(plays, start):
            window = self.windows[place]
            self._gathered(window.during)
            if step is not None:
                step(visit)
            if place < last:
                self._gathered(window.after)
            if window.copies and self.first:
                self.ledger.hold(_PARAMETERS, window.copies)
                self.copies += window.copies

    def _step(self, kind: str, way: str) -> Callable[[Visit], None] | None:
        step: Callable[[Visit], None] | None
        step = getattr(self, f"_{kind}_backward" if way == "backward" else f"_{kind}", None)
        return step

    def _gathered(self, size: int) -> None:
        if size > self.gathered:
            self.ledger.hold(_PARAMETERS, size - self.gathered)
        elif size < self.gathered:
            self.ledger.free(_PARAMETERS, self.gathered - size)
        self.gathered = size

    def _hold(self, size: int) -> None:
        self.ledger.hold(_ACTIVATIONS, size)

    def _free(self, size: int) -> None:
        self.ledger.free(_ACTIVATIONS, size)

    def _peek(self, size: int) -> None:
        self.ledger.peek(_ACTIVATIONS, size)

    def _gradient(self, visit: Visit) -> None:
        for name in visit.weights:
            weight: Weight = self.weights[name]
            self.ledger.hold(_GRADIENTS, self.settings.width * weight.elements)
            self.reducer.ready(weight)

    # --- forward ---------------------------------------------------------------------------------

    def _part(self, visit: Visit) -> str | None:
        return recomputed(self.settings.recompute, visit.layer)

    def _keeps(self, visit: Visit, part: str) -> bool:
        """Whether this forward visit leaves what a backward pass needs, and not just its result."""
        return visit.way == "again" or self._part(visit) not in ("block", part)

    def _embed(self, visit: Visit) -> None:
        self._hold(self.size.hidden)

    def _input_layernorm(self, visit: Visit) -> None:
        self._peek(self.size.norm)
        self._hold(self.size.hidden + self.size.rms)

    def _q(self, visit: Visit) -> None:
        self._hold(self.size.query)

    def _k(self, visit: Visit) -> None:
        self._hold(self.size.key)

    def _v(self, visit: Visit) -> None:
        """The values, then the rotation of queries and keys, and attention itself."""
        size = self.size
        self._hold(size.key)
        self._peek(size.rotate_query)
        self._hold(size.query)
        self._peek(size.rotate_key)
        self._free(size.query)
        self._hold(size.query + size.log_sum)
        self._peek(size.attend)

    def _o(self, visit: Visit) -> None:
        """The projection beside the stream, and their sum; a part that keeps nothing ends here."""
        size = self.size
        self._hold(size.hidden)
        kept = 2 * size.query + 2 * size.key + size.log_sum
        if not self._keeps(visit, "attention"):
            self._free(kept)
        self._peek(size.hidden)  # the projection becomes the sum
        if self._part(visit) == "block" and visit.way == "forward":
            self._free(size.hidden + size.rms)

    def _post_attention_layernorm(self, visit: Visit) -> None:
        self._input_layernorm(visit)

    def _gate(self, visit: Visit) -> None:
        self._hold(self.size.inner)

    def _up(self, visit: Visit) -> None:
        self._hold(self.size.inner)

    def _down(self, visit: Visit) -> None:
        size = self.size
        self._hold(size.hidden)
        self._peek(size.inner)
        if not self._keeps(visit, "mlp"):
            self._free(2 * size.inner)
        self._peek(size.hidden)
        if self._part(visit) == "block" and visit.way == "forward":
            self._free(2 * size.hidden + size.rms)  # the second norm's result, the stream's middle

    def _norm(self, visit: Visit) -> None:
        self._input_layernorm(visit)

    def _head(self, visit: Visit) -> None:
        part = self.head
        self.ledger.hold(_LOGITS, part.kept_hidden + part.kept_weight)
        self.ledger.peek(_LOGITS, part.working)
        self._free(self.size.hidden)  # what the norm gave: dx and dW are made of it already

    # --- backward --------------------------------------------------------------------------------

    def _head_backward(self, visit: Visit) -> None:
        part, ledger = self.head, self.ledger
        self._hold(self.size.hidden)
        weight = self.settings.width * self.weights["embed"].elements
        with ledger.held(_GRADIENTS, weight):
            ledger.peek(_LOGITS, part.backward)
        ledger.free(_LOGITS, part.kept_hidden + part.kept_weight)
        if self.tied:  # waits for the embedding's
            ledger.hold(_GRADIENTS, weight)
        else:
            self._gradient(visit)

    def _norm_backward(self, visit: Visit) -> None:
        self._peek(self.size.norm_backward)
        self._free(self.size.rms + self.size.hidden)
        self._gradient(visit)

    def _down_backward(self, visit: Visit) -> None:
        """The product is made again for dW; then the gradients of gate and up take its place."""
        inner = self.size.inner
        weight = self.settings.width * self.weights[visit.weights[0]].elements
        with self.ledger.held(_GRADIENTS, weight):
            self._peek(3 * inner)
        # gate and up go, their gradients stay
        self._gradient(visit)

    def _up_backward(self, visit: Visit) -> None:
        self._hold(self.size.hidden)
        self._free(self.size.inner)
        self._gradient(visit)

    def _gate_backward(self, visit: Visit) -> None:
        self._peek(self.size.hidden)
        self._free(self.size.inner + self.size.hidden)  # what the second norm gave
        self._gradient(visit)
        self._end(visit, "mlp")

    def _post_attention_layernorm_backward(self, visit: Visit) -> None:
        self._peek(self.size.norm_backward)
        self._gradient(visit)
        self._free(self.size.rms + 2 * self.size.hidden)

    def _o_backward(self, visit: Visit) -> None:
        self._hold(self.size.query)
        self._gradient(visit)

    def _v_backward(self, visit: Visit) -> None:
        """Attention's own backward and the rotation back come before the projections."""
        size = self.size
        self._hold(size.query + 2 * size.key)
        self._free(2 * size.query + 2 * size.key + size.log_sum + size.query)
        self._peek(size.rotate_query)
        self._hold(size.hidden)
        self._free(size.key)
        self._gradient(visit)

    def _k_backward(self, visit: Visit) -> None:
        self._peek(self.size.hidden)
        self._free(self.size.key)
        self._gradient(visit)

    def _q_backward(self, visit: Visit) -> None:
        self._peek(self.size.hidden)
        self._free(self.size.query + self.size.hidden)
        self._gradient(visit)
        self._end(visit, "attention")

    def _input_layernorm_backward(self, visit: Visit) -> None:
        self._post_attention_layernorm_backward(visit)
        self._end(visit, "block")

    def _end(self, visit: Visit, part: str) -> None:
        """The backward pass of a part is over: what it gave when it was run again goes too.

        What the part was given stays with the graph, which `finish` lets go of.
        """
        if self._part(visit) == part:
            self.graph += self.size.hidden

    def _embed_backward(self, visit: Visit) -> None:
        if self.tied:
            one = self.settings.width * self.weights["embed"].elements
            self.ledger.peek(_GRADIENTS, 2 * one)
            self.ledger.free(_GRADIENTS, one)
        self._gradient(visit)
        self._free(self.size.hidden)
