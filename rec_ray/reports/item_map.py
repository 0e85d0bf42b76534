"""Two-dimensional map of vectors by t-SNE (van der Maaten and Hinton 2008): near points are similar vectors.

Input: a matrix of at most some thousand rows. Output: two coordinates per row, the same for the same vectors. The
implementation is the exact method in numpy, quadratic in the number of rows.
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
    """Return the map position of each vector: [n, 2].

    vectors: [n, d]; only their directions are used. Large distances on the map mean dissimilar vectors, but are not to
    scale. Fewer than five vectors are placed at their principal components.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = np.asarray(vectors, np.float64) / np.maximum(lengths, 1e-12)
    positions = principal_components(directions)
    if len(positions) < 5:
        return positions
    affinities = _joint_affinities(directions)
    spread = positions.std()
    return _descend(positions * (1e-4 / spread) if spread > 0 else positions, affinities)


def principal_components(vectors: Array) -> Array:
    """Return the first two principal components of vectors [n, d]: [n, 2].

    The largest value of each component is positive, so that the same vectors give the same map.
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    positions = np.zeros((len(centred), 2))
    width = min(2, len(strength))
    positions[:, :width] = left[:, :width] * strength[:width]
    positions *= np.where(np.abs(positions.min(axis=0)) > positions.max(axis=0), -1.0, 1.0)
    return positions


def _squared_distances(points: Array) -> Array:
    squares = np.square(points).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * points @ points.T
    np.maximum(distances, 0, out=distances)
    np.fill_diagonal(distances, 0)
    return distances


def _joint_affinities(points: Array) -> Array:
    """Return the joint affinities of points [n, n], summing to 1: Gaussians whose width fits the perplexity."""
    n = len(points)
    distances = _squared_distances(points)
    target_entropy = np.log(min(PERPLEXITY, (n - 1) / 3))
    low, high, precision = np.zeros(n), np.full(n, np.inf), np.ones(n)
    others = ~np.eye(n, dtype=bool)
    share = np.zeros_like(distances)
    for _ in range(_BISECTIONS):
        nearest = np.where(others, distances, np.inf).min(axis=1, keepdims=True)
        share = np.exp(-(distances - nearest) * precision[:, None]) * others
        share /= share.sum(axis=1, keepdims=True)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
        too_wide = entropy > target_entropy
        low, high = np.where(too_wide, precision, low), np.where(too_wide, high, precision)
        precision = np.where(np.isinf(high), precision * 2, (low + high) / 2)
    return np.maximum((share + share.T) / (2 * n), 1e-12)


def _descend(positions: Array, affinities: Array) -> Array:
    """Return positions after gradient descent with momentum and gains on the divergence of the affinities."""
    n = len(positions)
    positions = positions.astype(np.float32)
    rate = max(n / EXAGGERATION / 4, 10.0)
    step, gains = np.zeros_like(positions), np.ones_like(positions)
    target_affinities = affinities.astype(np.float32)
    for number in range(STEPS):
        exaggerated = number < EXAGGERATED_STEPS
        target = target_affinities * EXAGGERATION if exaggerated else target_affinities
        affinity = 1 / (1 + _squared_distances(positions))
        np.fill_diagonal(affinity, 0)
        force = (target - affinity / affinity.sum()) * affinity
        gradient = 4 * (force.sum(axis=1, keepdims=True) * positions - force @ positions)
        gains = np.where(np.sign(gradient) != np.sign(step), gains + 0.2, gains * 0.8).clip(0.01)
        step = (0.5 if exaggerated else 0.8) * step - rate * gains * gradient
        positions = positions + step
        positions -= positions.mean(axis=0)
    return positions.astype(np.float64)
