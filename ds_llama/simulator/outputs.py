"""The files that a simulation can leave: a picture, a snapshot and a timeline of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ds_llama.errors import CallError
from ds_llama.measure import snapshot, timeline
from ds_llama.simulator import picture
from ds_llama.simulator.result import Simulation
from ds_llama.units import format_count


@dataclass(frozen=True)
class Outputs:
    """Where to write what. `picture` is of every run given, the others of one."""

    picture: Path | None = None
    snapshot: Path | None = None
    timeline: Path | None = None
    gpu_memory_bytes: int | None = None

    def check(self) -> None:
        """Raise CallError for a file that could not be written, before anything is simulated."""
        if self.picture is not None:
            picture.check(self.picture)
        elif self.gpu_memory_bytes is not None:
            raise CallError(
                "a GPU's memory is a line in a picture, and none is asked for",
                where="--gpu-memory",
                remedy="add --picture FILE.png, or ask `ds-llama plan` what fits",
            )
        for name in ("picture", "snapshot", "timeline"):
            path = getattr(self, name)
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                what = "is a folder" if path.is_dir() else "is in a folder that does not exist"
                raise CallError(
                    f"{path} {what}", where=f"--{name}", remedy="name a file in a folder that does"
                )

    def film(self, *, own: bool) -> Literal["no", "yes", "stacks"]:
        """What a simulation must keep: the run's own for all files, others for the picture."""
        if own and (self.snapshot or self.timeline):
            return "stacks"
        return "yes" if self.picture else "no"

    def write(self, found: Mapping[str, Simulation], own: str) -> None:
        """Write what is asked for; `own` is the label of the one whose snapshot it is."""
        films = {label: each.film for label, each in found.items() if each.film is not None}
        if self.snapshot is not None:
            snapshot.write(films[own], self.snapshot)
        if self.timeline is not None:
            timeline.write(films[own], self.timeline)
        if self.picture is not None:
            one = found[own]
            title = (
                f"{format_count(one.parameters)} parameters, rank {one.rank} of {one.world_size}"
            )
            picture.draw(films, self.picture, title=title, gpu_memory_bytes=self.gpu_memory_bytes)
