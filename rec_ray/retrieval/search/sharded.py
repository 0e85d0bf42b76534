"""Search of a catalogue in shards: one after another, so that memory is bounded by one shard, and a merge of the lists.

In come what opens each shard and where it begins, queries, k and exclusions over the whole catalogue; out go the lists
that one search of the whole catalogue gives. It knows nothing of where a shard lies or how it is searched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.search.keys import Exclusions, merge_top_k


class TopKSearch(Protocol):
    """What every engine of this folder is: a search of `item_count` items."""

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
    """Return the lists [q, min(k, n)] of the catalogue whose items the shards hold one after another.

    shards: an iterator may open each when it is asked for; none is kept.  The rest: as `ExactTopK.search` takes it.
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
    """Return the exclusions of items from `start` to `end`, counted from `start`."""
    inside = (exclude.values >= start) & (exclude.values < end)
    before = np.concatenate([[0], np.cumsum(inside)])
    return Exclusions(exclude.values[inside] - start, before[exclude.offsets])
