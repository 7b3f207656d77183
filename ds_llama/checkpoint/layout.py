"""layout.json: which rank has which elements of which parameter in its optimizer's file.

    {"parameters": [[name, shape, trained], …],       in the module's order
     "partitions": [[ranks, [elements, …]], …],       of so many ranks, one after another
     "pieces": [[parameter, partition, offset, rank, ranks, start, count], …]}

A piece is `count` elements of a parameter (an index) from `start` on, at `offset` of a partition of
`rank`; the `ranks` - 1 ranks after it have the elements that follow, as many each, at the same
place. So a parameter takes a row or two whatever the world: at stage 3 every rank has a slice of
the same size of it, and only the last may be shorter; at stages 1 and 2 all ranks but the first and
the last that have a part of it are full of it. A table of 1,138 parameters on 1,024 ranks, those of
a LLaMA 405B, takes 0.11 MB at stage 3 and 0.16 MB at stages 1 and 2; a list of every rank's pieces
took more than 30 MB.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ds_llama.errors import CheckpointError
from ds_llama.zero import world
from ds_llama.zero.pieces import places, sizes

NAME = "layout.json"


def of_rank(engine: Any) -> str:
    """Of the rank that asks, for `fold`: JSON, so that ranks can send it to each other as it is."""
    index = {name: number for number, (name, _) in enumerate(engine.module.named_parameters())}
    pieces = (
        (index[place.name], group, place.offset, place.start, place.count)
        for group, held in enumerate(places(engine))
        for place in held
    )
    return written(world.rank(), sizes(engine), pieces)


def written(rank: int, sizes: list[int], pieces: Iterable[tuple[int, int, int, int, int]]) -> str:
    """`of_rank` of these (parameter, partition, offset, start, count).

    Ranks that have pieces of the same size at the same places say the same, letter for letter, so
    `start` is what it would be on rank 0.
    """
    rows = [
        [index, group, offset, start - rank * count, count]
        for index, group, offset, start, count in pieces
        if count
    ]
    return json.dumps([sizes, rows])


def parameters(engine: Any) -> list[list[Any]]:
    """Name, shape and whether it is trained, of every parameter, in the module's order."""
    return [
        [name, list(getattr(parameter, "ds_shape", parameter.shape)), parameter.requires_grad]
        for name, parameter in engine.module.named_parameters()
    ]


def fold(parameters: list[list[Any]], ranks: Sequence[str]) -> dict[str, Any]:
    """The content of layout.json; `ranks`: `of_rank` of each."""
    partitions: list[list[Any]] = []
    rows: list[list[int]] = []
    last: dict[tuple[int, ...], list[int]] = {}
    rank = 0
    for text, same in groupby(ranks):
        count_of_ranks = len([*same])
        held, pieces = json.loads(text)
        partitions.append([count_of_ranks, held])
        for piece in pieces:
            row = last.get(tuple(piece))
            if row is None or row[3] + row[4] != rank:
                index, group, offset, start, count = piece
                row = [index, group, offset, rank, 0, start + rank * count, count]
                rows.append(row)
                last[tuple(piece)] = row
            row[4] += count_of_ranks
        rank += count_of_ranks
    return {"parameters": parameters, "partitions": partitions, "pieces": rows}


def encode(content: Mapping[str, Any]) -> bytes:
    """As it is written, a row a line."""
    tables = (
        json.dumps(key)
        + ": [\n"
        + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        for key, rows in content.items()
    )
    return ("{" + "\n],\n".join(tables) + "\n]}\n").encode()


@dataclass(frozen=True)
class Held:
    """Elements `start` … of a parameter, `count` of them, at `offset` of a partition of a rank."""

    rank: int
    partition: int
    offset: int
    start: int
    count: int


class Layout:
    """What layout.json says. `shapes`: of every parameter, by name; `trained`: names."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.shapes = {name: tuple(shape) for name, shape, _ in content["parameters"]}
        self.trained = {name for name, _, trained in content["parameters"] if trained}
        self._sizes = [held for ranks, held in content["partitions"] for _ in range(ranks)]
        self._rows: dict[str, list[list[int]]] = defaultdict(list)
        names = [*self.shapes]
        for index, *row in content["pieces"]:
            self._rows[names[index]].append(row)

    @property
    def ranks(self) -> int:
        """How many ranks saved it."""
        return len(self._sizes)

    def sizes(self, rank: int) -> list[int]:
        """Elements of each partition of a rank; none of one that was not there."""
        return self._sizes[rank] if rank < len(self._sizes) else []

    def holders(self, name: str, start: int = 0, numel: int | None = None) -> Iterator[Held]:
        """Who has any of the `numel` elements from `start` on; by default of all there are."""
        for group, offset, rank, ranks, begin, count in self._rows[name]:
            first = max(0, (start - begin) // count)
            stop = ranks if numel is None else min(ranks, -((begin - start - numel) // count))
            for number in range(first, stop):
                yield Held(rank + number, group, offset, begin + number * count, count)


def read(folder: Path) -> Layout:
    """layout.json of a step folder. Raises CheckpointError when it cannot be read."""
    path = folder / NAME
    try:
        return Layout(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{NAME} cannot be read ({type(error).__name__}: {error})",
            where=str(path),
            remedy="take another checkpoint: ds-llama checkpoint list shows which are complete",
        ) from error


def require_same_parameters(saved: Layout, engine: Any, where: Path) -> None:
    """Raise CheckpointError unless the engine has the parameters that were saved, and trains those
    that were trained."""
    now = Layout({"parameters": parameters(engine), "partitions": [], "pieces": []})
    names = "give this run the checkpoint's model, or another output folder"
    if gone := [name for name in saved.shapes if name not in now.shapes]:
        _refuse(f"the checkpoint has {_some(gone)}, which this run's model has not", where, names)
    if new := [name for name in now.shapes if name not in saved.shapes]:
        _refuse(f"this run's model has {_some(new)}, which the checkpoint has not", where, names)
    for name, shape in saved.shapes.items():
        if shape != now.shapes[name]:
            what = f"the checkpoint's {name} is {[*shape]}, this run's {[*now.shapes[name]]}"
            _refuse(what, where, names)
    remedy = "set requires_grad as it was before register(), or export the checkpoint and start "
    remedy += 'from its weights ({"model": {"pretrained": FOLDER}})'
    if more := [name for name in saved.shapes if name in saved.trained - now.trained]:
        _refuse(f"this run freezes {_some(more)}, which the checkpoint's trained", where, remedy)
    if less := [name for name in saved.shapes if name in now.trained - saved.trained]:
        _refuse(f"this run trains {_some(less)}, which the checkpoint's froze", where, remedy)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _refuse(what: str, where: Path, remedy: str) -> None:
    raise CheckpointError(what, where=str(where / NAME), remedy=remedy)
