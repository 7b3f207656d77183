"""What `ds-llama eval` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_FIGURES = {
    "acc": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "exact_match": "exact match",
    "f1": "token F1",
    "unanswered": "unanswered rows",
}
_NORM = "_norm"


def text(report: dict[str, Any]) -> str:
    """The report that `--json` prints, in a line or a table."""
    if report["task"] == "perplexity":
        return _perplexity(report)
    if report["task"] == "lm-eval":
        return _harness(report["results"])
    return _rows(report)


def _perplexity(report: dict[str, Any]) -> str:
    parts = [
        f"loss {_figure(report['loss'])} nats a token",
        f"perplexity {_figure(report['perplexity'])}",
    ]
    if report["bits_per_byte"] is not None:
        parts.append(f"{report['bits_per_byte']:.4f} bits a byte")
    return (
        f"{', '.join(parts)}, over {report['tokens']:,} tokens of {report['data']} "
        f"in windows of {report['sequence_length']}, stride {report['stride']}"
    )


def _rows(report: dict[str, Any]) -> str:
    likelihood = report["task"] == "likelihood"
    how = "most likely choice" if likelihood else "first line written"
    head = [f"{report['rows']:,} rows of {report['data']}", how]
    lines = [[*head, "per character"] if likelihood else head]
    for key, title in _FIGURES.items():
        if key in report:
            columns = [key, f"{key}{_NORM}"] if likelihood else [key]
            lines.append([title, *(_figure(report[column]) for column in columns)])
    return _aligned(lines)


def _harness(results: dict[str, dict[str, Any]]) -> str:
    lines = [["task", "metric", "value"]]
    for task, figures in results.items():
        found = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        lines += [[task, name.removesuffix(",none"), _figure(v)] for name, v in found.items()]
    return _aligned(lines)


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the last ones to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
