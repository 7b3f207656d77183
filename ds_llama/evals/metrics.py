"""What answers are worth, as formulas.

    accuracy          right rows / rows
    of a class        precision TP / (TP + FP), recall TP / (TP + FN), F1 2 TP / (2 TP + FP + FN);
                      0 / 0 is 0
    macro             their plain mean over the classes that occur, as right answers or as given
    exact match       normalised answer = normalised right answer
    token F1          2 P R / (P + R) over the multiset of words that both have, normalised

The first three are scikit-learn's (`precision_recall_fscore_support`, average="macro",
zero_division=0), the last two SQuAD 2.0's (Rajpurkar et al. 2018, its evaluation script).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Macro(NamedTuple):
    """Means over the classes, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def accuracy(gold: Sequence[str], given: Sequence[str | None]) -> float:
    """gold, given: a label a row; None is a row without an answer, which is wrong."""
    return mean([right == answer for right, answer in zip(gold, given, strict=True)])


def macro(gold: Sequence[str], given: Sequence[str | None]) -> Macro:
    """Precision, recall and F1, the mean of each over the classes.

    A row without an answer (None) is a false negative of its class and a false positive of none.
    """
    hits = Counter(right for right, answer in zip(gold, given, strict=True) if right == answer)
    golds, givens = Counter(gold), Counter(answer for answer in given if answer is not None)
    classes = sorted({*golds, *givens})
    return Macro(
        mean([_ratio(hits[name], givens[name]) for name in classes]),
        mean([_ratio(hits[name], golds[name]) for name in classes]),
        mean([_ratio(2 * hits[name], givens[name] + golds[name]) for name in classes]),
    )


def exact_match(answers: Sequence[str], given: str) -> float:
    """1 when `given` is one of the right answers, after `normalised`; else 0."""
    return max(float(normalised(answer) == normalised(given)) for answer in _askable(answers))


def token_f1(answers: Sequence[str], given: str) -> float:
    """The largest F1 of words over the right answers; where either has none, whether both do."""
    return max(
        _overlap(normalised(a).split(), normalised(given).split()) for a in _askable(answers)
    )


def normalised(text: str) -> str:
    """Lower case, without punctuation, without `a`, `an`, `the`, single spaces."""
    return " ".join(_ARTICLES.sub(" ", words(text)).split())


def words(text: str) -> str:
    """Lower case, without punctuation; articles stay, since choices may be called A, B, C."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def choice_in(choices: Sequence[str], text: str) -> str | None:
    """The choice that `text` begins with, in whole words and after `words`; the longest of several.

    A choice of punctuation alone is compared as it is. None when it begins with none.
    """
    best: str | None = None
    for choice in choices:
        wanted, said = words(choice).split(), words(text).split()
        if not wanted:
            wanted, said = choice.split(), text.split()
        if said[: len(wanted)] == wanted and (best is None or len(choice) > len(best)):
            best = choice
    return best


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _askable(answers: Sequence[str]) -> Sequence[str]:
    """SQuAD's rule: answers that normalise to nothing count only when there is no other."""
    return [answer for answer in answers if normalised(answer)] or [""]


def _overlap(wanted: list[str], said: list[str]) -> float:
    if not wanted or not said:
        return float(wanted == said)
    same = sum((Counter(wanted) & Counter(said)).values())
    return _ratio(2 * same, len(wanted) + len(said))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
