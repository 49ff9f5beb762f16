"""95% confidence intervals of what is measured on a sample of a text."""

from __future__ import annotations

import math

from qcompiler.feeds import Array

Z = 1.96
"""Standard errors to either side: 95% of a normal distribution."""

_ENOUGH = 3


def of_mean(values: Array) -> tuple[float, float] | None:
    """mean ± Z · s / √n of `values` [n], taken as independent, s their standard deviation.

    None with fewer than three values: no spread to measure.
    """
    n = len(values)
    if n < _ENOUGH:
        return None
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    return mean - Z * error, mean + Z * error


def of_share(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share `hits` / `total`, total > 0.

    Unlike share ± Z standard errors it stays within 0 .. 1 and has a width at both ends. Source:
    E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    share, z2 = hits / total, Z * Z
    center = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = share * (1 - share) / total + z2 / (4 * total * total)
    half = Z * math.sqrt(spread) / (1 + z2 / total)
    # At the ends the limit is the end itself; rounding must not move it.
    return (center - half if hits else 0.0), (center + half if hits < total else 1.0)
