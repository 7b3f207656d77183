"""Slurm's short forms: lists of nodes (`n[1-3,7],gpu[01-02]-ib`) and of counts (`2(x3),1`).

The nodes come in the order in which `scontrol show hostnames` prints them.
"""

from __future__ import annotations

import itertools
import re

from ds_llama.errors import ConfigError

MOST_NODES = 65536  # Slurm's own limit of one range
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PARTS = re.compile(r"\[([^][]*)\]|([^][]+)")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", re.ASCII)
_COUNT = re.compile(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", re.ASCII)


def expand(text: str, where: str = "SLURM_JOB_NODELIST") -> list[str]:
    """Every node's name. Several brackets and text behind a bracket are read too.

    Raises ConfigError for what is not a list of nodes, or one of more than 65536.
    """
    nodes: list[str] = []
    for item in _items(text, where):
        nodes += _expand_item(item, text, where, MOST_NODES - len(nodes))
    return nodes


def counts(text: str, where: str = "SLURM_TASKS_PER_NODE") -> list[int]:
    """One number a node: `2(x3),1` is [2, 2, 2, 1]. Raises ConfigError."""
    found: list[int] = []
    for word in text.split(","):
        match = _COUNT.fullmatch(word)
        if match is None or not int(match[1]) or int(match[2] or 1) > MOST_NODES:
            form = "Slurm writes one number a node, and 2(x3) for 2,2,2"
            raise ConfigError(f"{text!r} are not counts: {word!r}", where=where, remedy=form)
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _items(text: str, where: str) -> list[str]:
    """What commas outside of brackets divide."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
        if depth not in (0, 1):
            break
    if depth:
        raise _wrong(text, "its brackets do not match", where)
    return items


def _expand_item(item: str, text: str, where: str, most: int) -> list[str]:
    """`rack[0-1]n[2-3]` to four names, of which there may be at most so many."""
    if not item:
        why = "there is nothing between two commas" if text else "it is empty"
        raise _wrong(text, why, where)
    found = list(_PARTS.finditer(item))
    parts = [_part(match, text, where) for match in found]
    count = 1
    for part in parts:
        count *= len(part)
    if count > most:
        raise _wrong(text, f"more than {MOST_NODES} nodes", where)
    brackets = [index for index, match in enumerate(found) if match[1] is not None]
    names = ["".join(words) for words in _combinations(parts, brackets)]
    for name in names:
        if not _NAME.fullmatch(name):
            raise _wrong(text, f"{name!r} is not a node's name", where)
    return names


def _combinations(parts: list[list[str]], brackets: list[int]) -> list[tuple[str, ...]]:
    """Of several brackets Slurm runs through the last first, then from the first on."""
    order = [*reversed(brackets[:-1]), *brackets[-1:]]
    found = []
    for words in itertools.product(*(parts[index] for index in order)):
        chosen = dict(zip(order, words, strict=True))
        found.append(tuple(chosen.get(index, part[0]) for index, part in enumerate(parts)))
    return found


def _part(match: re.Match[str], text: str, where: str) -> list[str]:
    """A bracket's numbers, each as wide as the range is written; other text as it is."""
    if match[1] is None:
        return [match[2]]
    numbers: list[str] = []
    for word in match[1].split(","):
        found = _RANGE.fullmatch(word)
        if found is None:
            raise _wrong(text, f"{word!r} is neither a number nor a range", where)
        low, high = int(found[1]), int(found[2] or found[1])
        if low > high:
            raise _wrong(text, f"the range {word} runs backwards", where)
        if high - low + len(numbers) >= MOST_NODES:
            raise _wrong(text, f"more than {MOST_NODES} nodes", where)
        numbers += [f"{number:0{len(found[1])}d}" for number in range(low, high + 1)]
    return numbers


def _wrong(text: str, why: str, where: str) -> ConfigError:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    remedy = "give what `echo $SLURM_JOB_NODELIST` prints in a job, for example n[1-3,7]"
    return ConfigError(f"{shown!r} is not a list of nodes: {why}", where=where, remedy=remedy)
