"""Brute force of the exact search: scores in exactly emulated float32, all sorted; and inputs for the comparison."""

from __future__ import annotations

import numpy as np

from rec_ray.retrieval.search import Exclusions


def chain(queries, items):
    """Scores [q, n]: the float32 chain of fused multiply-adds in the order of dimensions, in plain arithmetic."""
    score = np.zeros((len(queries), len(items)), np.float32)
    for i in range(queries.shape[1]):
        score = (score + queries[:, i, None].astype(float) * items[None, :, i].astype(float)).astype(np.float32)
    return score


def brute_force(queries, items, k, exclude=None, allowed=None):
    scores = chain(queries, items)
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    for row in range(len(queries)) if exclude is not None else ():
        scores[row, exclude[0][exclude[1][row] : exclude[1][row + 1]]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, axis=1)
    return np.where(np.isinf(found), -1, order), found


def agree(result, expected):
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])


def vectors(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def random_exclusions(seed, query_count, item_count, most):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most + 1, query_count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Exclusions(rng.integers(0, item_count, offsets[-1]).astype(np.int32), offsets)
