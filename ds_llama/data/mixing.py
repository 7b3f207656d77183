"""Several corpora as one: exact proportions, decided by the global sample index alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

from ds_llama.data.sample import Dataset, Sample
from ds_llama.data.sampler import Sampler, mix
from ds_llama.errors import ConfigError

_LONGEST_PERIOD = 1 << 20


class ConcatenatedDataset:
    """Datasets end to end; index i is looked up in the one that holds it."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = list(parts)
        self.block_causal = any(part.block_causal for part in self.parts)
        self.starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][index - self.starts[part]]

    def lengths(self, index: int) -> tuple[int, ...]:
        """`Sample.lengths`, and nothing is read."""
        part = bisect_right(self.starts, index) - 1
        return self.parts[part].lengths(index - self.starts[part])

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


class MixtureSampler:
    """Draws from corpora in fixed proportion, each corpus in the order of its own `Sampler`.

    Corpus i has the share `weight_i x samples_i^(1/temperature)` of the draws: with a temperature
    of 1 as often as it is large, with higher ones the small corpora more, without one the weights
    alone (Arivazhagan et al., arXiv:1907.05019; Conneau and Lample, arXiv:1901.07291, section 3.1,
    call 1/temperature alpha). The shares become integers p_i with sum P, and P samples hold exactly
    p_i of corpus i. Within the period the j-th of corpus i stands at (j + 1/2) / p_i of it, so that
    after any k samples the count is within 1/2 + (p_i/P) * corpora/2 of k * p_i/P.

    A corpus that is used up begins its next epoch while the others go on, until it has been drawn
    `max_epochs` times over. Then its places are left out, and the others follow each other as they
    would have done:

        shares 1:1:2                    a c b c a c b c a c b c
        a ends after two draws          a c b c a c b c   c b c

    `length` is that of all corpora together, an epoch. `end` is the number of samples that there
    are: the caps of all corpora together, None unless each has one.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        seed: int,
        *,
        temperature: float | None = None,
        max_epochs: Sequence[float | None] | None = None,
    ) -> None:
        self.length = sum(lengths)
        self.starts = [0, *accumulate(lengths)]
        # Seeds of their own: corpora of equal length must not be walked in step.
        self.samplers = [Sampler(n, mix(mix(seed) + i)) for i, n in enumerate(lengths)]
        if temperature is not None:
            pairs = zip(weights, lengths, strict=True)
            weights = [weight * length ** (1 / temperature) for weight, length in pairs]
        self.parts = integer_proportions(weights)
        self._corpus, self._rank = _schedule(self.parts)
        most = max_epochs or [None] * len(lengths)
        caps = [_cap(n, epochs) for n, epochs in zip(lengths, most, strict=True)]
        self._phases = self._cut(caps)
        self._firsts = [phase.first for phase in self._phases]
        self.end = None if None in caps else self._firsts[-1]

    def corpus_and_position(self, global_sample_index: int) -> tuple[int, int]:
        """Which corpus, and the how-manieth sample of it.

        Raises IndexError beyond the `end`.
        """
        if self.end is not None and global_sample_index >= self.end:
            raise IndexError(f"sample {global_sample_index} of {self.end}")
        phase = self._phases[bisect_right(self._firsts, global_sample_index) - 1]
        period, place = phase.place(global_sample_index)
        corpus = int(self._corpus[place])
        return corpus, period * self.parts[corpus] + int(self._rank[place])

    def index(self, global_sample_index: int) -> int:
        corpus, position = self.corpus_and_position(global_sample_index)
        return self.starts[corpus] + self.samplers[corpus].index(position)

    def __len__(self) -> int:
        return self.length

    def _cut(self, caps: Sequence[int | None]) -> list[_Phase]:
        """A phase for each set of corpora that are drawn from, the whole one first."""
        period, alive = len(self._corpus), set(range(len(self.parts)))
        phases = [_Phase(0, 0, period, np.arange(period, dtype=np.int32))]
        lasts = [self._draw(corpus, cap - 1) for corpus, cap in enumerate(caps) if cap is not None]
        for last in sorted(lasts):
            alive.remove(int(self._corpus[last % period]))
            places = np.flatnonzero(np.isin(self._corpus, [*alive])).astype(np.int32)
            first = phases[-1].samples_before(last + 1)
            phases.append(_Phase(first, last + 1, period, places))
        return phases

    def _draw(self, corpus: int, position: int) -> int:
        """Where in the schedule of all corpora the `position`-th draw of one stands."""
        period, rank = divmod(position, self.parts[corpus])
        return period * len(self._corpus) + int(np.flatnonzero(self._corpus == corpus)[rank])


class _Phase:
    """The schedule of all corpora, without the places of those that have ended, from `start` on.

    `start` counts places as if no corpus ever ended, so that what is left out moves nothing else.
    `first` is the sample that stands at the first place.
    """

    def __init__(self, first: int, start: int, period: int, places: npt.NDArray[np.int32]) -> None:
        self.first, self._period, self._places = first, period, places
        self._before = self._count(start)

    def _count(self, place: int) -> int:
        """How many of the places before this one are not left out."""
        periods, rest = divmod(place, self._period)
        return periods * len(self._places) + int(np.searchsorted(self._places, rest))

    def samples_before(self, place: int) -> int:
        """Index of the first sample from this place on, if this phase goes on until there."""
        return self.first + self._count(place) - self._before

    def place(self, global_sample_index: int) -> tuple[int, int]:
        """Period and place in it of a sample of this phase."""
        drawn = self._before + global_sample_index - self.first
        period, rest = divmod(drawn, len(self._places))
        return period, int(self._places[rest])


def _cap(length: int, max_epochs: float | None) -> int | None:
    """Samples that `max_epochs` passes over a corpus allow, one at least; None: without end."""
    return None if max_epochs is None else max(1, int(length * Fraction(str(max_epochs))))


def integer_proportions(weights: Sequence[float]) -> list[int]:
    """Smallest integers in the ratio of the weights, read as the decimals that were written.

    0.7 and 0.3 give 7 and 3. Ratios that need a period above 2^20 are rounded to that (1e-6).
    """
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise ConfigError(
                f"a corpus has the weight {weight}",
                where="data.train",
                remedy="give each corpus a weight above 0, or take the corpus out of the list",
            )
    exact = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * scale) for weight in exact]
    total = sum(parts)
    if total > _LONGEST_PERIOD:
        parts = [max(1, round(Fraction(part * _LONGEST_PERIOD, total))) for part in parts]
    common = gcd(*parts)
    return [part // common for part in parts]


def _schedule(parts: Sequence[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """For each place of the period: the corpus, and how many of it came before in the period."""
    ranks = [np.arange(part, dtype=np.int32) for part in parts]
    ideal = np.concatenate([(r + 0.5) / p for r, p in zip(ranks, parts, strict=True)])
    corpora = np.repeat(np.arange(len(parts), dtype=np.int32), parts)
    order = np.argsort(ideal, kind="stable")
    return corpora[order], np.concatenate(ranks)[order]
