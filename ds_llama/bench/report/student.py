"""Student's t distribution, for intervals; the standard library has none."""

from __future__ import annotations

from math import exp, lgamma, log, log1p

_TERMS, _SMALL = 500, 1e-300


def probability_beyond(t: float, df: float) -> float:
    """P(|T| > t) of `df` degrees of freedom."""
    return _incomplete_beta(df / 2, 0.5, df / (df + t * t))


def quantile(beyond: float, df: float) -> float:
    """The t with P(|T| > t) = `beyond`, to 12 digits; by halving, the probability falls with t."""
    low, high = 0.0, 1.0
    while probability_beyond(high, df) > beyond:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if probability_beyond(middle, df) > beyond else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), by the continued fraction of DLMF 8.17.22, on the side where it converges."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    return front / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d1 / (1 + d2 / (1 + …)), by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for term in range(1, _TERMS):
        m = term // 2
        if term % 2:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + step * d or _SMALL)
        c = 1 + step / c or _SMALL
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
