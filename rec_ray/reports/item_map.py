"""Vectors in two dimensions, for the eye: near points are similar vectors (t-SNE, van der Maaten & Hinton 2008).

A matrix of at most some thousand rows comes in and two coordinates a row go out, the same for the same vectors. It is
the exact method in plain numpy, quadratic in the rows; it knows nothing of items, models or plots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PERPLEXITY = 30.0
STEPS, EXAGGERATED_STEPS, EXAGGERATION = 350, 100, 12.0
_BISECTIONS = 40

Array = NDArray[Any]


def map_vectors(vectors: Array) -> Array:
    """Return a place for each vector: [n, 2].

    vectors: [n, d]; their directions count, not their lengths. Far apart on the map means not similar, but how far
    means little. Fewer than five vectors are put where their principal components are.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = np.asarray(vectors, np.float64) / np.maximum(lengths, 1e-12)
    places = principal_components(directions)
    if len(places) < 5:
        return places
    shared = _neighbourhoods(directions)
    spread = places.std()
    return _descend(places * (1e-4 / spread) if spread > 0 else places, shared)


def principal_components(vectors: Array) -> Array:
    """Return the first two principal components of vectors [n, d]: [n, 2].

    The sign of a component is chosen so that its largest value is positive: the same vectors give the same picture.
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(centred), 2))
    width = min(2, len(strength))
    places[:, :width] = left[:, :width] * strength[:width]
    places *= np.where(np.abs(places.min(axis=0)) > places.max(axis=0), -1.0, 1.0)
    return places


def _squared_distances(points: Array) -> Array:
    squares = np.square(points).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * points @ points.T
    np.maximum(distances, 0, out=distances)
    np.fill_diagonal(distances, 0)
    return distances


def _neighbourhoods(points: Array) -> Array:
    """Return how much two points belong together [n, n], summing to 1: Gaussians as wide as the perplexity asks for."""
    n = len(points)
    distances = _squared_distances(points)
    wanted = np.log(min(PERPLEXITY, (n - 1) / 3))
    low, high, precision = np.zeros(n), np.full(n, np.inf), np.ones(n)
    others = ~np.eye(n, dtype=bool)
    share = np.zeros_like(distances)
    for _ in range(_BISECTIONS):
        nearest = np.where(others, distances, np.inf).min(axis=1, keepdims=True)
        share = np.exp(-(distances - nearest) * precision[:, None]) * others
        share /= share.sum(axis=1, keepdims=True)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
        too_wide = entropy > wanted
        low, high = np.where(too_wide, precision, low), np.where(too_wide, high, precision)
        precision = np.where(np.isinf(high), precision * 2, (low + high) / 2)
    return np.maximum((share + share.T) / (2 * n), 1e-12)


def _descend(places: Array, shared: Array) -> Array:
    """Move places by gradient descent with momentum and gains until their neighbourhoods are those wanted."""
    n = len(places)
    places = places.astype(np.float32)
    rate = max(n / EXAGGERATION / 4, 10.0)
    step, gains = np.zeros_like(places), np.ones_like(places)
    wanted = shared.astype(np.float32)
    for number in range(STEPS):
        exaggerated = number < EXAGGERATED_STEPS
        target = wanted * EXAGGERATION if exaggerated else wanted
        near = 1 / (1 + _squared_distances(places))
        np.fill_diagonal(near, 0)
        pull = (target - near / near.sum()) * near
        gradient = 4 * (pull.sum(axis=1, keepdims=True) * places - pull @ places)
        gains = np.where(np.sign(gradient) != np.sign(step), gains + 0.2, gains * 0.8).clip(0.01)
        step = (0.5 if exaggerated else 0.8) * step - rate * gains * gradient
        places = places + step
        places -= places.mean(axis=0)
    return places.astype(np.float64)
