"""One micro-batch, module by module: what is held, and what each operation needs meanwhile.

    forward    each block leaves what its backward pass needs (planner/activations.py)
    head       leaves dx and dW; the logits come and go in chunks
    backward   each block gives its activations back and makes gradients

`planner/passes.py` plays these into a run's ledger, one section after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from ds_llama.planner.activations import Activations, activations, head
from ds_llama.planner.gathers import Visit, Window, recomputed
from ds_llama.planner.ledger import Ledger, Stretch
from ds_llama.planner.settings import Settings

_ACTIVATIONS, _GRADIENTS, _LOGITS, _PARAMETERS = "activations", "gradients", "logits", "parameters"


class Part(NamedTuple):
    """A stretch of a section, and the visit after it whose gradient is there then, if any."""

    stretch: Stretch
    made: int | None


class Walk:
    """What each module does, recorded: the ledger begins empty, and begins again at a gradient."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.ledger = settings, Ledger()
        self.size, self.head = activations(settings, settings.width), head(settings)
        self.weights = {weight.name: weight for weight in settings.weights}
        self.tied = settings.model.tie_word_embeddings

    def region(self, order: Iterable[Visit]) -> int:
        """Bytes that go with the end of the forward pass."""
        return 0

    def record(self, visits: Sequence[Visit], windows: Sequence[Window]) -> list[Part]:
        """These visits one after the other, the first one's weights gathered already. `windows`:
        one for each, or none where nothing is gathered."""
        self.ledger, self.parts = Ledger(), list[Part]()
        width, gathered = self.settings.width, windows[0].during if windows else 0
        for self.place, (visit, window) in enumerate(zip_longest(visits, windows)):
            if window is not None:
                self.ledger.free(_PARAMETERS, width * gathered)
                self.ledger.hold(_PARAMETERS, width * window.most)
                self.ledger.free(_PARAMETERS, width * (window.most - window.during))
            step = getattr(self, f"_{visit.kind}{'_backward' * (visit.way == 'backward')}", None)
            if step is not None:
                step(visit)
            if window is not None:
                self.ledger.free(_PARAMETERS, width * (window.during - window.after))
                self.ledger.hold(_PARAMETERS, width * window.copies)
                gathered = window.after
        return [*self.parts, Part(self.ledger.stretch(), None)]

    def _hold(self, size: int) -> None:
        self.ledger.hold(_ACTIVATIONS, size)

    def _free(self, size: int) -> None:
        self.ledger.free(_ACTIVATIONS, size)

    def _peek(self, size: int) -> None:
        self.ledger.peek(_ACTIVATIONS, size)

    def _gradient(self, visit: Visit, free: int = 0) -> None:
        """Made, and then `free` bytes of what it was made of go."""
        elements = sum(self.weights[name].elements for name in visit.weights)
        self.ledger.hold(_GRADIENTS, self.settings.width * elements)
        self._free(free)
        self._made(visit)

    def _made(self, visit: Visit) -> None:
        """The gradients of what was visited are there. What takes them is played in between, so
        that a new stretch begins."""
        self.parts.append(Part(self.ledger.stretch(), self.place))
        self.ledger = Ledger()

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
        self._hold(self.size.key)
        self._attend(self.size)

    def _attend(self, size: Activations) -> None:
        self._peek(size.rotate_query)
        self._hold(size.query)
        self._peek(size.rotate_key)
        self._free(size.query)
        repeated = size.attended > 2 * size.key
        self._hold(size.attended * repeated)
        self._hold(size.query + size.log_sum + size.halves)
        self._peek(size.attend)
        self._free(2 * size.key * repeated)

    def _o(self, visit: Visit) -> None:
        """The projection beside the stream, and their sum; a part that keeps nothing ends here."""
        size = self.size
        self._hold(size.hidden)
        if not self._keeps(visit, "attention"):
            self._free(size.attention)
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

    def _down_backward(self, visit: Visit, free: int = 0) -> None:
        """The product is made again for dW; then the gradients of gate and up take its place."""
        inner = self.size.inner
        weight = self.settings.width * self.weights[visit.weights[0]].elements
        with self.ledger.held(_GRADIENTS, weight):
            self._peek(3 * inner)
        # gate and up go, their gradients stay
        self._gradient(visit, free)

    def _up_backward(self, visit: Visit) -> None:
        self._hold(self.size.hidden)
        self._gradient(visit, self.size.inner)

    def _gate_backward(self, visit: Visit) -> None:
        self._hold(self.size.hidden)  # added to up's; what the second norm gave goes
        self._gradient(visit, self.size.inner + 2 * self.size.hidden)

    def _post_attention_layernorm_backward(self, visit: Visit) -> None:
        self._peek(self.size.norm_backward)
        self._gradient(visit)
        self._free(self.size.rms + 2 * self.size.hidden)

    def _o_backward(self, visit: Visit, free: int = 0) -> None:
        self._hold(self.size.query)
        self._gradient(visit, free)

    def _v_backward(self, visit: Visit) -> None:
        """Attention's own backward and the rotation back come before the projections."""
        self._attend_backward(self.size)
        self._hold(self.size.hidden)
        self._gradient(visit, self.size.key)

    def _attend_backward(self, size: Activations) -> None:
        self._hold(size.query + size.attended)
        self._free(size.query + size.attention)
        self._peek(size.key)  # summed over the heads that share them
        self._free(size.attended - 2 * size.key)
        self._peek(size.rotate_query)

    def _k_backward(self, visit: Visit) -> None:
        self._hold(self.size.hidden)
        self._gradient(visit, self.size.key + self.size.hidden)

    def _q_backward(self, visit: Visit) -> None:
        self._hold(self.size.hidden)
        self._gradient(visit, self.size.query + 2 * self.size.hidden)

    def _input_layernorm_backward(self, visit: Visit) -> None:
        self._post_attention_layernorm_backward(visit)

    def _embed_backward(self, visit: Visit) -> None:
        if self.tied:
            one = self.settings.width * self.weights["embed"].elements
            self.ledger.peek(_GRADIENTS, 2 * one)
            self.ledger.free(_GRADIENTS, one)
        self._gradient(visit)
        self._free(self.size.hidden)
