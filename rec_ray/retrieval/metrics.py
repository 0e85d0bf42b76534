"""PLACEHOLDER by the lead, so that callers can be built; its owner replaces it and keeps these four signatures."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def target_ranks(
    queries: Array, items: Array, targets: Array, offsets: Array, *, exclude: Any = None, allowed: Array | None = None
) -> Array:
    """Rank (1 = best) of each target among the allowed, not excluded items: [T]; offsets [q + 1] of targets per query."""
    ranks = np.zeros(len(targets), np.int64)
    for i in range(len(queries)):
        own = targets[offsets[i] : offsets[i + 1]]
        if len(own) == 0:
            continue
        scores = items @ queries[i]
        keep = np.ones(len(items), bool) if allowed is None else allowed.copy()
        if exclude is not None:
            keep[exclude[0][exclude[1][i] : exclude[1][i + 1]]] = False
        keep[own] = True
        index = np.arange(len(items))
        for j, t in enumerate(own):
            better = keep & ((scores > scores[t]) | ((scores == scores[t]) & (index < t)))
            ranks[offsets[i] + j] = 1 + better.sum()
    return ranks


def _per_user(values: Array, offsets: Array) -> Array:
    return np.add.reduceat(np.append(values, 0.0), offsets[:-1]) * (np.diff(offsets) > 0)


def recall_at_k(ranks: Array, offsets: Array, k: int) -> Array:
    """[q] share of each user's targets among the first k; 0 without targets."""
    counts = np.maximum(np.diff(offsets), 1)
    return _per_user((ranks <= k).astype(float), offsets) / counts


def ndcg_at_k(ranks: Array, offsets: Array, k: int) -> Array:
    """[q] NDCG@k with binary relevance."""
    gains = np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    counts = np.minimum(np.diff(offsets), k)
    return np.where(counts > 0, _per_user(gains, offsets) / ideal[np.maximum(counts, 1) - 1], 0.0)


def reciprocal_rank(ranks: Array, offsets: Array) -> Array:
    """[q] 1 / rank of the first target."""
    out = np.zeros(len(offsets) - 1)
    for i in range(len(out)):
        if offsets[i + 1] > offsets[i]:
            out[i] = 1 / ranks[offsets[i] : offsets[i + 1]].min()
    return out
