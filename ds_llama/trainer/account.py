"""`train.accounting`: what construction, initialisation, the first steps and the first save hold.

OUTPUT/accounting.json has, as a simulation has, `phases` (construct, initialise, and forward,
backward and step of the last accounted step, save) and `first_step`, each figure the largest of any
rank; beside them, per phase, what the allocator and the operating system say (`process`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ds_llama.checkpoint import ranks
from ds_llama.commit import disk
from ds_llama.config.run import Run
from ds_llama.measure.accounting import Account
from ds_llama.measure.phases import largest, merged
from ds_llama.units import format_bytes
from ds_llama.zero import world

NAME = "accounting.json"
STEPS = 3
"""Steps that are accounted: the optimizer makes its state in the first, the rest are alike."""

_COLUMNS = {
    "device": lambda found: found["device"]["now_bytes"],
    "peak": lambda found: found["device"]["peak_bytes"],
    "host": lambda found: found["host"]["now_bytes"],
    "host peak": lambda found: found["host"]["peak_bytes"],
    "allocated peak": lambda found: found["process"]["device_peak_bytes"],
    "reserved peak": lambda found: found["process"]["device_peak_reserved_bytes"],
    "RSS peak": lambda found: found["process"]["peak_rss_bytes"],
}


class Recording:
    """The account of one run on one rank. Nothing is counted, and nothing slower, afterwards."""

    def __init__(self) -> None:
        self.account = Account(world.device().type, process=True)
        self._edges: list[int] = []
        self._counting = False

    @classmethod
    @contextmanager
    def of(cls, run: Run) -> Iterator[Recording | None]:
        """A recording that counts from here on, if the run asks for one; ended with the block."""
        if not run.train.accounting:
            yield None
            return
        recording = cls()
        recording.start()
        try:
            yield recording
        finally:
            recording.stop()

    def start(self) -> None:
        """Count from now on."""
        self._counting = True
        self.account.__enter__()

    def stop(self) -> None:
        """Count no more; nothing when it was not counting."""
        if self._counting:
            self._counting = False
            self.account.__exit__(None, None, None)

    def step_made(self) -> None:
        """One step is made; after STEPS of them counting ends."""
        if self._counting:
            self._edges.append(len(self.account.phases))
            if len(self._edges) >= STEPS:
                self.stop()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count here if nothing was saved while counting: the save marks its own phase."""
        if self._counting or any(found.name == "save" for found in self.account.phases):
            yield
            return
        self.start()
        try:
            yield
        finally:
            self.stop()

    def report(self, output: Path) -> None:
        """Write the largest of all ranks to OUTPUT/accounting.json and print it; collective."""
        self.stop()
        everyones = ranks.gather(self._found())
        if world.rank() == 0:
            phases = {
                part: [
                    largest(same) for same in zip(*(each[part] for each in everyones), strict=True)
                ]
                for part in everyones[0]
            }
            content = {"world_size": world.world_size(), "steps": len(self._edges), **phases}
            disk.write(output / NAME, (json.dumps(content, indent=1) + "\n").encode())
            print(table(phases["phases"]))

    def _found(self) -> dict[str, list[dict[str, Any]]]:
        phases, edges = self.account.phases, [*self._edges]
        starts = [0, *edges]
        first = phases[: edges[0]] if edges else phases
        before = [found for found in first if found.name in ("construct", "initialise")]
        last = phases[starts[-2] : edges[-1]] if edges else []
        saves = [found for found in phases if found.name == "save"][:1]
        steps = [[p for p in part if p.name in _STEP] for part in (last, first)]
        return {
            "phases": [p.to_dict() for p in merged([*before, *steps[0], *saves])],
            "first_step": [p.to_dict() for p in merged(steps[1])],
        }


_STEP = frozenset({"forward", "backward", "step"})


def table(phases: list[dict[str, Any]]) -> str:
    """Phases by columns; a column of which nothing is known or held is left out."""
    columns = {title: [of(found) for found in phases] for title, of in _COLUMNS.items()}
    shown = {title: values for title, values in columns.items() if any(values)}
    lines = [f"{'live bytes':12}" + "".join(f"{title:>16}" for title in shown)]
    for index, found in enumerate(phases):
        cells = (values[index] for values in shown.values())
        words = ("-" if cell is None else format_bytes(cell) for cell in cells)
        lines.append(f"{found['name']:12}" + "".join(f"{word:>16}" for word in words))
    return "\n".join(lines)
