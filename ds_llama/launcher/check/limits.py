"""How long the hosts may take to answer: 10 s in all, or what DS_LLAMA_CHECK_S says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ds_llama.errors import CallError

VARIABLE = "DS_LLAMA_CHECK_S"
LEAST_S, MOST_S = 1.0, 100.0


@dataclass(frozen=True)
class Limits:
    """Seconds since the beginning, each a share of the whole; `pair_s`: of one way, by itself."""

    within_s: float = 10.0

    @property
    def connect_s(self) -> int:
        """ssh, to a host's first word (ConnectTimeout takes whole seconds)."""
        return max(1, round(0.4 * self.within_s))

    @property
    def facts_s(self) -> float:
        """What a host has is told."""
        return 0.65 * self.within_s

    @property
    def pairs_s(self) -> float:
        """Its way to the others is told."""
        return 0.9 * self.within_s

    @property
    def pair_s(self) -> float:
        """A way to another host that takes longer is none."""
        return 0.15 * self.within_s

    @property
    def allreduce_s(self) -> float:
        """The all-reduce, which comes after all that."""
        return 2 * self.within_s

    @property
    def join_s(self) -> float:
        """Of which its ranks wait so long for each other."""
        return 1.5 * self.within_s

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Limits:
        """What the variable says. Raises CallError for what is no number of seconds, 1 to 100."""
        text = environ.get(VARIABLE, "")
        if not text:
            return cls()
        try:
            within_s = float(text)
        except ValueError:
            within_s = 0.0
        if not LEAST_S <= within_s <= MOST_S:
            raise CallError(
                f"{VARIABLE}={text} is not {LEAST_S:g} to {MOST_S:g} seconds",
                where=VARIABLE,
                remedy="give a number, or leave it away: a check takes 10 s at most by itself",
            )
        return cls(within_s)
