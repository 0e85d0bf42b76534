"""Exclusions per query, sort keys of scores, and the merge of the lists of shards, for all searches.

Input: ragged exclusions, float32 scores, or lists of shards. Output: the same data in the form that a search needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.ragged import take_rows, value_rows

NO_ITEM = np.iinfo(np.int64).max
"""Sort key of no item, larger than all others."""
ITEM_BITS = 31
"""Bits of the item index in a sort key; the score lies above them."""
_ITEM = (1 << ITEM_BITS) - 1


class Exclusions(NamedTuple):
    """Item indices that must not be returned, ragged per query.

    values: [total] int32 or int64 item indices, in any order, repeats allowed.
    offsets: [queries + 1] int64; the exclusions of query i are `values[offsets[i]:offsets[i + 1]]`.
    """

    values: NDArray[np.integer]
    offsets: NDArray[np.int64]


def merge_top_k(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], starts: Sequence[int], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Merge the top-k lists of item shards into the lists of the complete catalogue.

    parts: per shard indices [q, k'] within the shard (-1: none) and scores [q, k'].
    starts: per shard the catalogue index of its first item.

    Returns indices [q, k] int64 and scores [q, k] float32, k cut to the length of all lists together.
    """
    keys = np.concatenate(
        [
            np.where(indices < 0, NO_ITEM, descending(scores) << ITEM_BITS | indices + start)
            for (indices, scores), start in zip(parts, starts, strict=True)
        ],
        axis=1,
    )
    keys.sort(axis=1)
    return decode_keys(keys[:, :k])


def decode_keys(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the indices and scores of sorted keys [q, k]; -1 and -inf where a key is `NO_ITEM`."""
    is_empty = keys == NO_ITEM
    indices = np.where(is_empty, -1, keys & _ITEM)
    return indices, np.where(is_empty, np.float32(-np.inf), scores_of(keys >> ITEM_BITS))


def descending(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return integers in [0, 2**32) whose ascending order is the descending order of the scores; -0.0 equals 0.0."""
    bits = (scores + np.float32(0)).view(np.int32)
    ascending = bits ^ (bits >> 31 & 0x7FFFFFFF)
    order: NDArray[np.int64] = 0x7FFFFFFF - ascending.astype(np.int64)
    return order


def scores_of(order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the scores from which `descending` made these integers."""
    ascending = (0x7FFFFFFF - order).astype(np.int32)
    return (ascending ^ (ascending >> 31 & 0x7FFFFFFF)).view(np.float32)


def owners(ragged: Exclusions) -> NDArray[np.int64]:
    """Return the query of each value: [total]."""
    return value_rows(ragged.offsets)


def part_of(ragged: Exclusions, block: slice) -> Exclusions:
    """Return the exclusions of the queries of a block."""
    offsets = ragged.offsets[block.start : block.stop + 1]
    return Exclusions(ragged.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def chosen_of(ragged: Exclusions, queries: NDArray[np.int64]) -> Exclusions:
    """Return the exclusions of the chosen queries."""
    return Exclusions(*take_rows(*ragged, queries))


def check_exclusions(exclude: Exclusions, query_count: int, item_count: int) -> Exclusions:
    """Return the exclusions unchanged.

    Raises ValueError if offsets or item indices do not fit the numbers of queries and items.
    """
    values, offsets = exclude
    if offsets.shape != (query_count + 1,) or offsets[0] != 0 or offsets[-1] != len(values):
        raise ValueError(f"offsets must be [{query_count + 1}], from 0 to {len(values)}")
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= item_count):
        raise ValueError(f"exclusions and targets must be item indices from 0 to {item_count - 1}")
    return exclude
