"""What `bench comm` says of its numbers, in words: on a terminal, and in a report."""

from __future__ import annotations

from typing import Any

from ds_llama.bench.comm_stages import format_seconds
from ds_llama.measure.bus import factor
from ds_llama.units import format_bytes, format_decimal_bytes


def lines(found: dict[str, Any]) -> list[str]:
    """What is said below the table: the link, what was left out, a sentence a stage."""
    said = [*([link(found)] if found["link"] else []), *left_out(found)]
    return [*said, "", f"{about_stages(found)}:", *(f"- {s['sentence']}" for s in found["stages"])]


def about_stages(found: dict[str, Any]) -> str:
    """Whose steps the stages' sentences are of."""
    return f"A step of {found['run']}, if nothing is hidden behind computation"


def left_out(found: dict[str, Any]) -> list[str]:
    """What was not measured, a line a size."""
    by_size: dict[str, list[dict[str, Any]]] = {}
    for each in found["left_out"]:
        by_size.setdefault(format_bytes(each["bytes"]), []).append(each)
    said = []
    for size, same in by_size.items():
        names = ", ".join(f"{each['collective']} {each['dtype']}" for each in same)
        said.append(f"left out: {size} of {names}: the first {same[0]['reason']}")
    return said


def link(found: dict[str, Any]) -> str:
    """What neighbours reach, and what a ring makes of it."""
    reached, ranks = found["link"], found["world_size"]
    rate = format_decimal_bytes(reached["bytes_per_s"])
    return (
        f"link: {rate}/s each way between neighbours that send and receive at a time; "
        f"{format_seconds(reached['latency_s'])} for {format_bytes(reached['latency_bytes'])}. "
        f"A ring reaches that as bus bandwidth at best: an all-reduce moves "
        f"2({ranks} - 1)/{ranks} = {factor('all_reduce', ranks):.3g} times its payload over each "
        "link."
    )


def gigabytes(bytes_per_s: float) -> str:
    """Of a rate, with three digits."""
    return f"{bytes_per_s / 1e9:,.3g}" if bytes_per_s < 1e12 else f"{bytes_per_s / 1e9:,.0f}"
