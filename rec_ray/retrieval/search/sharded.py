"""Search of a catalogue in shards, one after another, so that memory is bounded by one shard, and a merge of the lists.

Input: the searches of the shards, queries, k and exclusions over the complete catalogue. Output: the lists that one
search of the complete catalogue returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.ragged import filter_values
from rec_ray.retrieval.search.keys import Exclusions, merge_top_k


class TopKSearch(Protocol):
    """Search of `item_count` items; all searches of this package have this interface."""

    item_count: int

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the indices and scores of the k best items of each query, as `ExactTopK.search` does."""
        ...


def search_shards(
    shards: Iterable[TopKSearch],
    queries: NDArray[np.float32],
    k: int,
    exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the lists [q, min(k, n)] of the catalogue that the shards hold one after another.

    shards: an iterator may open a shard when it is requested; no shard is kept.  Other arguments: as in
    `ExactTopK.search`.
    """
    lists, starts, start = [], [], 0
    for shard in shards:
        end = start + shard.item_count
        part = None if exclude is None else cut_exclusions(Exclusions(*exclude), start, end)
        lists.append(shard.search(queries, k, part, None if allowed is None else allowed[start:end]))
        starts.append(start)
        start = end
        del shard
    if len(lists) == 1:
        return lists[0]
    return merge_top_k(lists, starts, min(k, start))


def cut_exclusions(exclude: Exclusions, start: int, end: int) -> Exclusions:
    """Return the exclusions of items from `start` to `end`, with indices relative to `start`."""
    inside = (exclude.values >= start) & (exclude.values < end)
    values, offsets = filter_values(*exclude, inside)
    return Exclusions(values - start, offsets)
