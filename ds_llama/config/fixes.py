"""`lint --fix`: the changes that are certain, made one by one in the text of the file.

Certain is what leaves nothing to decide: a key that DeepSpeed does not read or stops at goes, a
name that is all but spelled right is put right, an old name becomes the new one, a default that
changed is written out. What would train differently is left to a person.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_llama.config import patch
from ds_llama.config.deepspeed import lookup
from ds_llama.config.files import to_object
from ds_llama.config.keys import Key
from ds_llama.config.keys_training import OPTIMIZERS, SCHEDULERS
from ds_llama.config.lint import Linter, Report
from ds_llama.config.patch import Path as Keys
from ds_llama.config.problems import Problem, guessed, moved_to

# How alike two names are before one is taken for the other without asking (difflib's ratio).
CERTAIN = 0.8
_PASSES = 50
_LAST = "changed-default"
_REMOVED = re.compile("no-effect-.*|number-alone|legacy-stage-1|auto-unfilled")


@dataclass(frozen=True)
class Fixed:
    """What became of a file: `report` is of the text as it is now."""

    report: Report
    before: str
    text: str
    applied: tuple[Problem, ...] = ()

    def difference(self, target: Path) -> list[str]:
        """The lines of a unified diff from the file to what was written; none when nothing was."""
        old, new = self.before.split("\n"), self.text.split("\n")
        return [*difflib.unified_diff(old, new, str(self.report.path), str(target), lineterm="")]


def fix_file(linter: Linter, path: Path) -> Fixed:
    """Everything that is certain about one file, which is not written here."""
    report = linter.report(path)
    if not report.readable:
        return Fixed(report, report.text, report.text)
    text, applied = fix(linter, report.text, path)
    return Fixed(linter.report_of(text, path), report.text, text, tuple(applied))


def fix(linter: Linter, text: str, path: Path) -> tuple[str, list[Problem]]:
    """The text with what is certain changed, and what that mended. Applied again it does nothing.

    A pass changes all that it can; a change after which its problem is still there, or which put
    a value where it does not fit, is refused and the pass made again without it.
    """
    applied, refused = list[Problem](), set[tuple[str, str]]()
    for _ in range(_PASSES):
        new, batch, targets = text, list[Problem](), set[str]()
        found = linter.report_of(text, path).problems
        tree, secret = to_object(text, path), {p.key for p in found if p.code == "secret"}
        for problem in sorted(found, key=lambda problem: problem.code == _LAST):
            # What is absent may be elsewhere under another name, until all else is mended.
            wait = problem.code == _LAST and batch
            if wait or problem.key in secret or (problem.code, problem.key) in refused:
                continue
            changed, target = _mended(problem, new, tree)
            if changed != new:
                new, tree, batch = changed, to_object(changed, path), [*batch, problem]
                targets |= {target} if target else set()
        if not batch:
            break
        after = linter.report_of(new, path).problems
        there = {(problem.code, problem.key) for problem in after}
        unfit = {p.key for p in after if p.code in ("wrong-type", "wrong-value")} & targets
        bad = {(p.code, p.key) for p in batch} & there
        bad |= {(p.code, p.key) for p in batch if unfit and _target(p) in unfit}
        if bad:
            refused |= bad
        else:
            text, applied = new, applied + batch
    return text, applied


def _mended(problem: Problem, text: str, tree: Any) -> tuple[str, str | None]:
    """The text with this one problem mended, and the key that got its value, if another did."""
    keys = patch.locate(tree, problem.key)
    try:
        if _REMOVED.fullmatch(problem.code) and keys:
            return patch.remove(text, keys), None
        change = _CHANGES.get(problem.code)
        if change is None:
            return text, None
        return change(problem, text, tree, keys), _target(problem)
    except (KeyError, ValueError, IndexError):
        return text, None


def _target(problem: Problem) -> str | None:
    *parents, _ = problem.key.split(".")
    guess = guessed(problem)
    return ".".join([*parents, guess]) if guess and problem.code == "unknown-key" else None


def _value(tree: Any, keys: Keys) -> Any:
    for name in keys:
        tree = tree[name]
    return tree


def _has(tree: Any, keys: Keys) -> bool:
    try:
        _value(tree, keys)
    except (KeyError, TypeError):
        return False
    return True


def certain(name: str, guess: str) -> bool:
    """Whether `guess` is what `name` was to be; names with other digits are other names."""
    alike = difflib.SequenceMatcher(None, name.lower(), guess.lower()).ratio() >= CERTAIN
    return alike and re.sub(r"\D", "", name) == re.sub(r"\D", "", guess)


def _rename(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    guess = guessed(problem)
    if not keys or not guess or not certain(keys[-1], guess) or _has(tree, (*keys[:-1], guess)):
        return text
    return patch.rename(text, keys, guess)


def _choose(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    """A value that is the name of something, misspelt."""
    guess = guessed(problem)
    if not keys or not guess or not certain(str(_value(tree, keys)), guess):
        return text
    return patch.write(text, keys, guess)


def _drop(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    if not keys:
        return text
    if keys[-3:] == ("optimizer", "params", "max_grad_norm"):
        to = (*keys[:-3], "gradient_clipping")
        return patch.remove(text, keys) if _has(tree, to) else patch.move(text, keys, to)
    curriculum = keys[-1] == "curriculum_learning" and isinstance(_value(tree, keys), dict)
    if curriculum and _value(tree, keys).get("enabled"):
        return text  # where it goes now has another shape
    return patch.remove(text, keys)


_NEW_NAMES = {
    "bfloat16": "bf16",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}
_NEW_SECTIONS = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}


def _new_name(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    if not keys:
        return text
    *parents, name = keys
    if name in _NEW_NAMES:
        to = (*parents, _NEW_NAMES[name])
        return text if _has(tree, to) else patch.rename(text, keys, to[-1])
    section = (*parents, _NEW_SECTIONS.get(name, ""))
    if name in _NEW_SECTIONS and _value(tree, keys) is True:
        if _has(tree, section):
            return text  # which of the two is meant is not ours to say
        text = patch.write(text, section, {"device": "cpu"})
    return patch.remove(text, keys)


def _into_params(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    if not keys:
        return text
    *parents, name = keys
    to = (*parents, "params", name)
    sections = OPTIMIZERS if parents[-1] == "optimizer" else SCHEDULERS
    kind = str(_value(tree, tuple(parents)).get("type"))
    known = sections.get(kind.lower() if sections is OPTIMIZERS else kind)
    if known is None or name not in known.keys or _has(tree, to):
        return text
    return patch.move(text, keys, to)


def _to_its_place(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    home = moved_to(problem)
    if not keys or home is None:
        return text
    to = (*home, keys[-1])
    if _has(tree, to) or not _has(tree, home):
        return text  # whether a section is to be begun is not ours to say
    return patch.move(text, keys, to)


def _same_twice(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    named = re.findall(r"keep '(\w+)'", problem.remedy)
    if not keys or not named or _value(tree, keys) != _value(tree, (*keys[:-1], named[0])):
        return text
    return patch.remove(text, keys)


def _default(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    """Written out as what this release takes it for, so that the next one does too."""
    found = lookup(problem.key.split("."))
    if keys or not isinstance(found, Key):
        return text
    return patch.write(text, tuple(problem.key.split(".")), found.default)


_WORDS = {"true": True, "false": False}


def _retype(problem: Problem, text: str, tree: Any, keys: Keys | None) -> str:
    """A value that says what it means in another type: "true", 1 for true, "16", stage without
    its object."""
    if not keys:
        return text
    value = _value(tree, keys)
    if keys[-1] == "zero_optimization" and value in (0, 1, 2, 3) and not isinstance(value, float):
        return patch.write(text, keys, {"stage": int(value)})
    wants_bool = problem.remedy.startswith("write true or false")
    if wants_bool and (str(value).lower() in _WORDS or value in (0, 1)):
        return patch.write(text, keys, _WORDS.get(str(value).lower(), bool(value)))
    if "number" in problem.remedy and isinstance(value, str):
        number = float(value)
        if math.isfinite(number) and re.fullmatch(r"[-+.\deE]+", value):
            return patch.write(text, keys, int(number) if number.is_integer() else number)
    return text


_CHANGES: dict[str, Callable[[Problem, str, Any, Keys | None], str]] = {
    "unknown-key": _rename,
    "optimizer-type": _choose,
    "scheduler-type": _choose,
    "removed-key": _drop,
    "deprecated-key": _new_name,
    "beside-params": _into_params,
    "misplaced-key": _to_its_place,
    "two-spellings": _same_twice,
    "changed-default": _default,
    "wrong-type": _retype,
}
