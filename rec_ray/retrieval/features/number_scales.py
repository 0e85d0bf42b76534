"""Scales of numbers with heavy tails, fitted from quantiles of blocks: prices, counts, and columns with outliers.

Input: sketches of the finite values of blocks. Output: a bend, asinh((value - median) / unit), which is linear near the
median and logarithmic far from it, or None if mean and deviation describe the number well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

CLIP = 5.0
"""Number of standard deviations at which a number is clipped, so that one extreme price does not dominate."""
SKETCH_POINTS = 257
"""Number of quantiles per block of a number."""
HEAVY = 1.75
"""Standard deviation over that of a normal distribution with the same quartiles, from which the tails count as heavy.
It is 1.2 for an exponential distribution and 2.0 for a log-normal one of sigma 1, which is typical of prices."""
NORMAL_QUARTILES = 1.349
"""Distance between the quartiles of a normal distribution in standard deviations."""

Array = npt.NDArray[Any]


def bend(values: Array, median: float, unit: float) -> Array:
    """Return asinh((value - median) / unit), logarithmic far from the median."""
    return np.arcsinh((values - median) / unit)


def sketch(values: Array) -> tuple[Array, float]:
    """Return quantiles of values and the number of values that each quantile represents."""
    if len(values) <= SKETCH_POINTS:
        return np.sort(values), 1.0
    shares = (np.arange(SKETCH_POINTS) + 0.5) / SKETCH_POINTS
    return np.quantile(values, shares, method="inverted_cdf"), len(values) / SKETCH_POINTS


def fit_bend(
    sketches: Sequence[tuple[Array, float]], deviation: float
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return median and unit of a number with heavy tails, and mean and deviation of its bent values; else None."""
    if not sketches:
        return None
    points = np.concatenate([points for points, _ in sketches])
    weights = np.concatenate([np.full(len(points), weight) for points, weight in sketches])
    median, first, third = _weighted_quantiles(points, weights, (0.5, 0.25, 0.75))
    unit = (third - first) / NORMAL_QUARTILES
    away = np.abs(points - median)
    if unit <= 0 and away.any():
        # More than half of the values are equal: measure the distances of the others.
        unit = float(_weighted_quantiles(away[away > 0], weights[away > 0], (0.5,))[0])
    if not (unit > 1e-12 * abs(median) and deviation > HEAVY * unit):
        return None
    bent = np.clip(bend(points, median, unit), -CLIP, CLIP)
    mean = float(np.average(bent, weights=weights))
    spread = float(np.sqrt(np.average(np.square(bent - mean), weights=weights)))
    return (median, unit), (mean, spread if spread > 1e-12 else 1.0)


def _weighted_quantiles(values: Array, weights: Array, shares: Sequence[float]) -> list[float]:
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order])
    places = np.searchsorted(cumulated, np.array(shares) * cumulated[-1])
    return [float(value) for value in values[order][np.minimum(places, len(values) - 1)]]
