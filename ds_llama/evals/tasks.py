"""Rows scored: figures over all of them, and what was answered to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ds_llama.data.rows import Row
from ds_llama.data.tokenizer import Tokenizer
from ds_llama.evals import metrics
from ds_llama.evals.load import Loaded
from ds_llama.evals.scoring import choice_loglikelihoods, written_answers


class Scores(NamedTuple):
    """`summary`: the figures, as `--json` prints them. `rows`: one dict a row, as `--out` does."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def by_likelihood(
    loaded: Loaded, coder: Tokenizer, rows: Sequence[Row], *, batch_size: int
) -> Scores:
    """The most likely choice is the answer: `acc` by its log-likelihood, `acc_norm` by that over
    its length in characters, both as lm-eval defines them; the first of equals.

    `macro_*` are null where rows have different choices, which are no classes.
    """
    found = choice_loglikelihoods(loaded.model, coder, rows, batch_size=batch_size)
    plain, normalised = (
        [_likeliest(row, values, by_length) for row, values in zip(rows, found, strict=True)]
        for by_length in (False, True)
    )
    summary = {"task": "likelihood", "rows": len(rows), **_figures(rows, plain)}
    summary |= {f"{name}_norm": value for name, value in _figures(rows, normalised).items()}
    each = [
        {
            **_asked(row),
            "predicted": plain[i],
            "predicted_norm": normalised[i],
            "loglikelihoods": found[i],
        }
        for i, row in enumerate(rows)
    ]
    return Scores(summary, each)


def by_generation(
    loaded: Loaded, coder: Tokenizer, rows: Sequence[Row], *, batch_size: int, max_new_tokens: int
) -> Scores:
    """The first line that the model writes is the answer.

    Rows with choices: the choice that it begins with, none counts as wrong (`unanswered`). Others:
    exact match and token F1, the best over a row's right answers, their means over the rows.
    """
    written = written_answers(
        loaded.model,
        coder,
        rows,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        eos=loaded.eos if coder.eos_id is None else {*loaded.eos, coder.eos_id},
    )
    summary: dict[str, Any] = {"task": "generation", "rows": len(rows)}
    pairs = list(zip(rows, written, strict=True))
    if rows[0].choices:
        given = [metrics.choice_in(row.choices, text) for row, text in pairs]
        summary |= _figures(rows, given) | {"unanswered": given.count(None)}
        marks: list[dict[str, Any]] = [{"predicted": choice} for choice in given]
    else:
        marks = [
            {
                "exact_match": metrics.exact_match(row.answers, text),
                "f1": metrics.token_f1(row.answers, text),
            }
            for row, text in pairs
        ]
        summary |= {key: metrics.mean([mark[key] for mark in marks]) for key in marks[0]}
    each = [
        {**_asked(row), "text": text, **mark}
        for (row, text), mark in zip(pairs, marks, strict=True)
    ]
    return Scores(summary, each)


def _figures(rows: Sequence[Row], given: Sequence[str | None]) -> dict[str, float | None]:
    gold = [row.answers[0] for row in rows]
    classes = len({frozenset(row.choices) for row in rows}) == 1
    means = metrics.macro(gold, given)._asdict() if classes else {}
    return {
        "acc": metrics.accuracy(gold, given),
        **{f"macro_{name}": means.get(name) for name in metrics.Macro._fields},
    }


def _likeliest(row: Row, values: Sequence[float], by_length: bool) -> str:
    scored = [
        value / len(choice) if by_length else value
        for value, choice in zip(values, row.choices, strict=True)
    ]
    return row.choices[scored.index(max(scored))]


def _asked(row: Row) -> dict[str, Any]:
    return {"line": row.line, "prompt": row.prompt, "answers": list(row.answers)}
