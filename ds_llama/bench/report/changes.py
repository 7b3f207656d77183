"""What a report says of another folder: the change of each cell, and how sure it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ds_llama.bench.report.compare import FASTER, SAME, SLOWER, UNSURE, Change, Comparison
from ds_llama.bench.report.document import Beyond, Block, Folded, Heading, Table, Text
from ds_llama.bench.report.words import counted, percent, signed


def change_blocks(comparison: Comparison) -> Iterator[Block]:
    """The section on the change from the other folder's rows to these."""
    yield Heading(f"Change from {comparison.other}", anchor="change")
    yield Text(sentence(comparison), "advice")
    if comparison.changes:
        yield table(comparison)
        yield Text(_confidence(comparison), "note")
    for words, names in (
        ("measured now and not before", comparison.gained),
        (f"only here, not in {comparison.other}", comparison.only_here),
        (f"only in {comparison.other}, not here", comparison.only_there),
    ):
        if names:
            rows = tuple((name,) for name in names)
            yield Folded(f"{len(names)} {words}", (Table(("cell",), rows),))
    for name, why in comparison.lost:
        yield Text(f"{name}: {why}.")


def sentence(comparison: Comparison) -> str:
    """How many cells became faster and slower, and whether the machine did."""
    if not comparison.changes:
        return "No cell was measured in both folders."
    counts = Counter(change.verdict for change in comparison.changes)
    order = (SLOWER, FASTER, SAME, UNSURE)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if counts[verdict])
    words = [f"{counted(len(comparison.changes), 'cell')} measured in both: {said}."]
    peaks = sorted(c.peak_flops for c in comparison.changes if c.peak_flops is not None)
    if peaks and abs(peaks[len(peaks) // 2]) >= 0.02:
        middle = signed(peaks[len(peaks) // 2])
        words.append(f"The machine's own product of matrices changed by {middle} (median).")
    if counts[UNSURE]:
        words.append("A cell needs two launches in both folders: ds-llama bench --repeats 3.")
    return " ".join(words)


def table(comparison: Comparison) -> Table:
    """A row a cell that both folders have measured."""
    head = ("cell", "tokens/s", "95% interval", "verdict", "launches", "peak memory", "GEMM peak")
    return Table(head, tuple(_row(change) for change in comparison.changes))


def _row(change: Change) -> tuple[str, ...]:
    interval = "unknown"
    if change.low is not None and change.high is not None:
        interval = f"{signed(change.low)} to {signed(change.high)}"
    verdict = Beyond(change.verdict) if change.verdict == SLOWER else change.verdict
    more = change.memory is not None and change.memory > 0
    memory = Beyond(signed(change.memory)) if more else signed(change.memory)
    launches = f"{change.launches[0]}, {change.launches[1]}"
    return (
        change.name,
        signed(change.speed),
        interval,
        verdict,
        launches,
        memory,
        signed(change.peak_flops),
    )


def _confidence(comparison: Comparison) -> str:
    if comparison.noise is None:
        return "Each cell has one launch a folder: its noise is unknown, and so is any confidence."
    noise = comparison.noise
    return (
        f"A launch's median differs from the next one's by {percent(noise.deviation)} (standard "
        f"deviation, pooled over all cells, {noise.df} degrees of freedom; a cell's own where that "
        "is larger). The intervals hold for all cells together. Memory is counted, without noise."
    )
