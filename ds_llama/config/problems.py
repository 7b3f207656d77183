"""What a check finds: a value with a stable code, and the helpers that word it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Literal

from ds_llama.errors import ConfigError, ConfigErrors

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One finding. `key` is the dotted path inside the file; `code` never changes its meaning."""

    code: str
    severity: Severity
    key: str
    message: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def to_error(self, path: str, prefix: str = "") -> ConfigError:
        """As an exception whose `where` is `file:key`, `prefix` put before the key."""
        key = ".".join(part for part in (prefix, self.key) if part)
        error = ConfigError(self.message, where=at(path, key), remedy=self.remedy)
        error.code = self.code
        return error


def at(path: str, key: str) -> str:
    """`file:key`, or the file alone when the problem is about the whole of it."""
    return f"{path}:{key}" if key else path


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that a typing mistake most likely meant, or None."""
    matches = get_close_matches(name.lower(), [*known], n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy: the nearest name when there is one, else the whole list."""
    names = sorted(known)
    guess = nearest(name, names)
    return f"did you mean {guess!r}?" if guess else f"known names: {', '.join(names)}"


def guessed(problem: Problem) -> str | None:
    """The name that `did_you_mean` put into a problem's remedy."""
    found = re.match(r"did you mean '([^']+)'\?", problem.remedy)
    return found[1] if found else None


def moved_to(problem: Problem) -> tuple[str, ...] | None:
    """The section that a misplaced key belongs into, where there is only one."""
    found = re.fullmatch(r"move it (?:into '([\w.]+)'|to the top level)", problem.remedy)
    return None if not found else tuple(found[1].split(".")) if found[1] else ()


def raise_errors(errors: list[ConfigError]) -> None:
    """Raise what was found, all at once; return when nothing was."""
    if errors:
        raise ConfigErrors(errors)
