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

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


class MixtureSampler:
    """Draws from corpora in proportion to `weights`, each corpus in the order of its own `Sampler`.

    The weights become integers p_i with sum P, and P samples hold exactly p_i of corpus i. Within
    the period the j-th of corpus i stands at (j + 1/2) / p_i of it, so that after any k samples the
    count is within 1/2 + (p_i/P) * corpora/2 of k * p_i/P. A corpus that is used up begins its next
    epoch while the others go on. `length` is that of all corpora together.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.length = sum(lengths)
        self.starts = [0, *accumulate(lengths)]
        # Seeds of their own: corpora of equal length must not be walked in step.
        self.samplers = [Sampler(n, mix(mix(seed) + i)) for i, n in enumerate(lengths)]
        self.parts = integer_proportions(weights)
        self._corpus, self._rank = _schedule(self.parts)

    def corpus_and_position(self, global_sample_index: int) -> tuple[int, int]:
        """Which corpus, and the how-manieth sample of it."""
        period, place = divmod(global_sample_index, len(self._corpus))
        corpus = int(self._corpus[place])
        return corpus, period * self.parts[corpus] + int(self._rank[place])

    def index(self, global_sample_index: int) -> int:
        corpus, position = self.corpus_and_position(global_sample_index)
        return self.starts[corpus] + self.samplers[corpus].index(position)

    def __len__(self) -> int:
        return self.length


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
