"""Forward and backward passes of one micro-batch after another, played into a run's ledger.

The modules are taken in sections, a block or what lies between blocks (planner/walk.py). Sections
of one kind, for which the same is gathered, are recorded once and replayed; gradients are told to
the stage's reducer (planner/gradients.py) one by one, for buckets do not end where blocks end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ds_llama.planner.autocast import Autocast
from ds_llama.planner.compiled import Compiled
from ds_llama.planner.gathers import Visit, Window, recomputed
from ds_llama.planner.gradients import Reducer
from ds_llama.planner.ledger import Ledger
from ds_llama.planner.settings import Settings
from ds_llama.planner.walk import Part, Walk

_ACTIVATIONS, _PARAMETERS = "activations", "parameters"
_FIRST = frozenset({"llama", "block", "norm", "embed"})  # kinds with which a section begins


class Passes:
    """`windows`: one for each visit of `order`, empty below stage 3."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        reducer: Reducer,
        order: Sequence[Visit],
        windows: Sequence[Window],
    ) -> None:
        self.settings, self.ledger, self.reducer = settings, ledger, reducer
        narrower = settings.product_width < settings.width
        walk = Compiled if settings.leaves else Autocast if narrower else Walk
        self.order, self.walk = order, walk(settings)
        self.region = self.walk.region(order)
        self.weights = {weight.name: weight for weight in settings.weights}
        # The last weight waits for `finish`: it is the embedding's, whose input has no gradient.
        self.after = windows[-1].after if windows else 0
        self.windows = [*windows[:-1], *(last._replace(after=last.during) for last in windows[-1:])]
        self.later, self.copies, self.pinning = (
            self.windows,
            0,
            0,
        )  # later: from the second micro-batch on
        if settings.copies:
            self.later = [window._replace(copies=0) for window in self.windows]
            made = [settings.width * window.copies for window in self.windows]
            self.copies = sum(made)
            pinned = [every + one for every, one in zip(accumulate(made), made, strict=True)]
            self.pinning = max(pinned) - self.copies if settings.pinned("param") else 0
        self.params_on_host = settings.resolved.offload_param is not None
        if self.params_on_host:
            self.windows = self.later  # where the slices are, the copies are: all at once, here
        self.gathered = 0
        self.first = True
        self.recorded: dict[tuple[object, ...], list[Part]] = {}
        starts = [place for place, visit in enumerate(order) if visit.kind in _FIRST]
        self.sections = [*zip(starts, [*starts[1:], len(order)], strict=True)]
        self.split = next(
            i for i, (at, _) in enumerate(self.sections) if order[at].way != "forward"
        )

    def forward(self) -> None:
        """From the token ids to the loss."""
        self.ledger.hold(_ACTIVATIONS, 16 * self.settings.tokens)  # ids and labels, int64
        if self.first and self.params_on_host:
            self.ledger.hold(_PARAMETERS, self.copies, host=True)
            self.ledger.peek("other", self.pinning, host=True)
        self._play(self.sections[: self.split])
        self.ledger.free(_ACTIVATIONS, self.region)

    def backward(self) -> None:
        """From the loss to the last gradient; the reducer is told of each."""
        self._play(self.sections[self.split :])
        self.ledger.free(_ACTIVATIONS, 16 * self.settings.tokens)

    def finish(self) -> None:
        """After the backward pass: the loss dies, and with it the graph. Checkpointed parts have
        their inputs there as plain attributes (checkpointing.py:582), which no backward frees."""
        layers = range(self.settings.model.num_hidden_layers)
        parts = sum(recomputed(self.settings.recompute, layer) is not None for layer in layers)
        self.ledger.free(_ACTIVATIONS, parts * self.walk.size.hidden)
        self._gather(self.after)
        self.first = False

    def updated(self) -> None:
        """After the update, which makes hpZ's copies worthless."""
        self.ledger.free(_PARAMETERS, self.copies, host=self.params_on_host)
        self.first = True

    def _play(self, sections: Sequence[tuple[int, int]]) -> None:
        replay = self.ledger.replay
        for start, stop in sections:
            if self.windows:
                self._gather(self.windows[start].during)
                self.gathered = self.windows[stop - 1].after
            for part in self._parts(start, stop):
                replay(part.stretch)
                if part.made is not None:
                    for name in self.order[start + part.made].weights:
                        self.reducer.ready(self.weights[name])

    def _parts(self, start: int, stop: int) -> list[Part]:
        """A section as it was recorded for the first of its kind."""
        head = self.order[start]
        windows = (self.windows if self.first else self.later)[start:stop]
        kept = recomputed(self.settings.recompute, head.layer)
        key = (head.kind, head.way, kept, *windows)
        if key not in self.recorded:
            self.recorded[key] = self.walk.record(self.order[start:stop], windows)
        return self.recorded[key]

    def _gather(self, elements: int) -> None:
        """Hold that much of gathered weights instead of what was held."""
        size = self.settings.width * (elements - self.gathered)
        if size > 0:
            self.ledger.hold(_PARAMETERS, size)
        else:
            self.ledger.free(_PARAMETERS, -size)
        self.gathered = elements
