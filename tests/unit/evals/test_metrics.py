"""Formulas beside scikit-learn's, and SQuAD's by examples and laws."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from ds_llama.evals import metrics
from ds_llama.evals.metrics import accuracy, choice_in, exact_match, macro, normalised, token_f1

LABELS = st.sampled_from(["negative", "neutral", "positive", "mixed"])
ANSWERS = st.lists(st.tuples(LABELS, st.none() | LABELS), min_size=1, max_size=40)
WORDS = st.lists(st.sampled_from(["The", "a", "cat", "Cat!", "sat.", "on", "mat", "—"]))
TEXTS = WORDS.map(" ".join)


def by_scikit_learn(rows: list[tuple[str, str | None]]) -> tuple[float, ...]:
    """None as a label that is no class: scikit-learn counts it against the right class alone."""
    gold, said = [right for right, _ in rows], [answer or "" for _, answer in rows]
    classes = sorted({*gold, *said} - {""})
    found = precision_recall_fscore_support(
        gold, said, labels=classes, average="macro", zero_division=0
    )
    return (accuracy_score(gold, said), *found[:3])


@settings(max_examples=30)  # scikit-learn takes its time
@given(ANSWERS)
def test_classification_equals_scikit_learn(rows: list[tuple[str, str | None]]) -> None:
    gold, said = [right for right, _ in rows], [answer for _, answer in rows]
    found = (accuracy(gold, said), *macro(gold, said))
    assert found == pytest.approx(by_scikit_learn(rows), abs=1e-12)


def test_classes_that_are_never_right_or_never_given_count_as_zero() -> None:
    rows = [("a", "b"), ("a", "a"), ("c", None)]
    found = macro([right for right, _ in rows], [said for _, said in rows])
    assert found == pytest.approx((1 / 3, 1 / 6, (2 / 3) / 3))
    assert found == pytest.approx(by_scikit_learn(rows)[1:])


def test_a_class_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "a")]
    gold, said = [right for right, _ in rows], [answer for _, answer in rows]
    expected = by_scikit_learn(rows)[1:]
    assert macro(gold, said) == pytest.approx(expected)
    monkeypatch.setattr(metrics, "sorted", lambda classes: ["a"], raising=False)
    assert macro(gold, said) != pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The   Eiffel Tower. ", "eiffel tower"),
        ("an apple, a pear & the fig", "apple pear fig"),
        ("theatre anchor", "theatre anchor"),
        ("U.S.A.", "usa"),
        ("don't", "dont"),
        ("The", ""),
        ("«déjà» vu", "«déjà» vu"),  # ASCII punctuation alone, as SQuAD's script has it
    ],
)
def test_normalisation_is_squads(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("answers", "said", "match", "f1"),
    [
        (["Eiffel Tower"], "the eiffel tower!", 1, 1),
        (["Eiffel Tower"], "tower", 0, 2 / 3),
        (["in Paris, France", "Paris"], "Paris.", 1, 1),
        (["in Paris, France"], "Paris is in Italy", 0, 2 * 2 / (3 + 4)),
        (["the cat the cat"], "cat", 0, 2 / 3),  # a multiset: one cat of two
        (["red"], "blue", 0, 0),
        (["red"], "", 0, 0),
        ([""], "", 1, 1),  # a question without an answer
        ([""], "the", 1, 1),
        ([""], "red", 0, 0),
        (["the", "red"], "", 0, 0),  # an answer of articles counts only where it is the only one
    ],
)
def test_answers_are_scored_as_squad_does(
    answers: list[str], said: str, match: float, f1: float
) -> None:
    assert exact_match(answers, said) == match
    assert token_f1(answers, said) == pytest.approx(f1)


@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS)
def test_laws_of_answers(answers: list[str], said: str) -> None:
    f1 = token_f1(answers, said)
    assert 0 <= f1 <= 1
    assert exact_match(answers, said) <= f1
    assert max(token_f1([answer], said) for answer in answers) >= f1
    assert token_f1([said], said) == exact_match([said], said) == 1
    assert token_f1(answers[:1], said) == pytest.approx(token_f1([said], answers[0]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("positive", "positive"),
        ("Positive. It was a joy", "positive"),
        ("positively", None),
        ("not positive", None),
        ("very positive", "very positive"),
        ("A) because", "A"),
        ("b", "B"),
        ("++ fine", "++"),
        ("+", None),
        ("", None),
    ],
)
def test_a_written_answer_is_a_choice(text: str, expected: str | None) -> None:
    choices = ["positive", "very positive", "very", "A", "B", "++"]
    assert choice_in(choices, text) == expected
