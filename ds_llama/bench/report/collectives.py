"""What `ds-llama bench comm` left in a benchmark's folder: its shape, its tables, its plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from ds_llama.bench import comm_words
from ds_llama.bench.comm_stages import format_seconds
from ds_llama.bench.report import drawing
from ds_llama.bench.report.document import Block, Folded, Heading, Items, Pictures, Table, Text
from ds_llama.bench.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    RED,
    SKY,
    YELLOW,
    Picture,
)
from ds_llama.bench.report.row import Read
from ds_llama.errors import DataError
from ds_llama.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.artist import Artist

NAME = "comm.json"
_COLOURS = {
    "send_recv": GREY,
    "all_gather": BLUE,
    "reduce_scatter": ORANGE,
    "all_reduce": GREEN,
    "broadcast": PINK,
    "reduce": YELLOW,
    "all_to_all": SKY,
}
_DASH = "-"


class Seconds(Read):
    """Of a call: median, 10th and 90th percentile of the samples."""

    median: float
    p10: float
    p90: float


class Timed(Read):
    """One collective in one dtype at one size, as `bench.comm.row` makes it."""

    collective: str
    dtype: str
    bytes: int = Field(gt=0)
    seconds: Seconds
    algorithm_bytes_per_s: float
    bus_bytes_per_s: float = Field(gt=0)

    @property
    def series(self) -> str:
        return f"{self.collective} {self.dtype}"


class LeftOut(Read):
    collective: str
    dtype: str
    bytes: int
    reason: str


class Link(Read):
    """What neighbours reach who send and receive at a time, and what a small message takes."""

    bytes_per_s: float = Field(gt=0)
    latency_s: float
    latency_bytes: int


class Stage(Read):
    name: str
    sentence: str


class Comm(Read):
    """The file. `run`: whose steps the stages' sentences are of."""

    device: str
    backend: str
    world_size: int = Field(ge=2)
    run: str
    rows: list[Timed]
    left_out: list[LeftOut] = Field(default_factory=list)
    link: Link | None = None
    stages: list[Stage] = Field(default_factory=list)
    provenance: dict[str, Any] | None = None


def read(folder: Path) -> Comm | None:
    """What is there, None without one. Raises DataError for a file that is none."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        return Comm.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        why = f"no JSON: {error}"
    raise DataError(
        f"is not what `ds-llama bench comm` writes ({why})",
        where=str(path),
        remedy="remove the file, or measure again: ds-llama bench comm --out DIR",
    )


def blocks(comm: Comm) -> Iterator[Block]:
    """The section: the link, bus bandwidth by size, and what a step of each stage makes of it."""
    found = comm.model_dump()
    yield Heading("Collectives", anchor="collectives")
    about = comm.provenance or {}
    name = about.get("processor") if comm.device == "cpu" else None
    machine = f"{name} ({about.get('cores')} cores)" if name else comm.device
    yield Text(f"{comm.world_size} ranks on {machine}, {comm.backend}.", "note")
    if comm.link is not None:
        said = comm_words.link(found)
        yield Text(said[0].upper() + said[1:])
    if comm.rows:
        yield _bandwidths(comm)
        yield Text("GB/s of bus bandwidth: what crosses every rank's link.", "note")
        yield Pictures((_picture(comm),))
        lacking = (Text(f"{s[0].upper()}{s[1:]}.", "note") for s in comm_words.left_out(found))
        summary = f"all {len(comm.rows)} times" + (", and what was left out" * bool(comm.left_out))
        yield Folded(summary, (_times(comm), *lacking))
    if comm.stages:
        yield Heading("What they make of a step of each stage", 3)
        yield Text(f"{comm_words.about_stages(found)}:", "note")
        yield Items(tuple((stage.name, f"{stage.sentence}.") for stage in comm.stages))


def _bandwidths(comm: Comm) -> Table:
    """A row a collective and dtype, a column a size; the most of it as a share of the link."""
    sizes = sorted({row.bytes for row in comm.rows})
    rows = []
    for series in dict.fromkeys(row.series for row in comm.rows):
        own = {row.bytes: row.bus_bytes_per_s for row in comm.rows if row.series == series}
        values = [comm_words.gigabytes(own[size]) if size in own else _DASH for size in sizes]
        rows.append((series, *values, _of_link(comm, max(own.values()))))
    return Table(("collective", *map(format_bytes, sizes), "most, of link"), tuple(rows))


def _times(comm: Comm) -> Table:
    head = ("collective", "size", "time", "p10 - p90", "alg GB/s", "bus GB/s", "of link")
    rows = []
    for row in comm.rows:
        low, high = format_seconds(row.seconds.p10), format_seconds(row.seconds.p90)
        rates = map(comm_words.gigabytes, (row.algorithm_bytes_per_s, row.bus_bytes_per_s))
        time = format_seconds(row.seconds.median), f"{low} - {high}"
        of = _of_link(comm, row.bus_bytes_per_s)
        rows.append((row.series, format_bytes(row.bytes), *time, *rates, of))
    return Table(head, tuple(rows))


def _of_link(comm: Comm, bus_bytes_per_s: float) -> str:
    return f"{bus_bytes_per_s / comm.link.bytes_per_s:.0%}" if comm.link else _DASH


def _picture(comm: Comm) -> Picture:
    """Bus bandwidth by size, a line a collective; dashed what a ring over these links could."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    name = "collectives"
    with drawing.style(name):
        figure = Figure(figsize=(drawing.WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        drawing.plain(axes, "both")
        handles: dict[str, Artist] = {}
        first: dict[str, str] = {}  # of each collective the dtype whose line is whole
        for series in dict.fromkeys(row.series for row in comm.rows):
            own = sorted((r for r in comm.rows if r.series == series), key=lambda r: r.bytes)
            kind, dtype = own[0].collective, own[0].dtype
            (handles[series],) = axes.plot(
                [row.bytes for row in own],
                [row.bus_bytes_per_s / 1e9 for row in own],
                "-" if first.setdefault(kind, dtype) == dtype else ":",
                color=_COLOURS.get(kind, RED),
                marker=".",
                markersize=5,
                linewidth=1.4,
            )
        if comm.link is not None:
            bound = comm.link.bytes_per_s / 1e9
            handles["a ring's bound"] = axes.axhline(bound, color=INK, linestyle="--", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        sizes = sorted({row.bytes for row in comm.rows})
        axes.set_xticks(sizes, [format_bytes(size).replace(" ", "\n") for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("payload")
        axes.set_ylabel("bus bandwidth, GB/s")
        drawing.legend(figure, handles)
        alt = f"Bus bandwidth of {len(handles)} collectives by size, {comm.world_size} ranks"
        note = "Dashed: what neighbours reach, all that a ring's ranks do."
        return drawing.finish(figure, name, "Bus bandwidth by size", alt, note)
