"""Approximate top-k for catalogues of millions of items: an inverted file of faiss chooses, exact scores order the
result.

Input: an item matrix, an index as bytes, queries, k and items to exclude. Output: lists in the float32 order of
`ExactTopK` that may lack some of the best items; `recall_of` measures how many.

Items are kept as one byte per dimension in lists around centres (Jegou et al., "Product quantization for nearest
neighbor search", 2011; faiss `IVF,SQ8`); a query reads the lists of the nearest `probes` centres. The search requests
more items than k, so that exclusions can be dropped and the rounding of bytes hardly reduces recall.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec_ray.errors import ConfigError
from rec_ray.retrieval.search.exact import ExactTopK
from rec_ray.retrieval.search.keys import ITEM_BITS, NO_ITEM, Exclusions, decode_keys, descending, owners

_TRAINING_POINTS = 64
"""Training items per centre."""


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ConfigError(
            "candidates.engine faiss_ivf needs faiss: install rec_ray[faiss], or set candidates.engine: exact"
        ) from error
    return faiss


def build_faiss_index(items: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.uint8]:
    """Return an inverted file over the items [n, d] as bytes; about d + 8 bytes per item.

    The number of centres is 4 times the root of n; each is learned from 64 items.

    Raises ConfigError when faiss is not installed.
    """
    faiss = _faiss()
    faiss.omp_set_num_threads(threads)
    count, size = items.shape
    centres = max(1, min(round(4 * math.sqrt(count)), count // 39))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(size), size, centres, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    # Items are encoded without subtracting their centre: inner products stay comparable between lists.
    index.by_residual = False
    index.own_fields = False
    sample = np.random.default_rng(0).permutation(count)[: centres * _TRAINING_POINTS]
    index.cp.niter, index.cp.seed, index.cp.max_points_per_centroid = 10, 1234, _TRAINING_POINTS
    index.train(np.ascontiguousarray(items[np.sort(sample)]))
    for start in range(0, count, 65_536):
        index.add(items[start : start + 65_536])
    written: NDArray[np.uint8] = faiss.serialize_index(index)
    return written


class FaissTopK:
    """Search of an inverted file.

    items: [n, d] float32, for the scores; may be shared memory.  index: of `build_faiss_index`.  probes: lists that a
    query reads.  threads: threads of one search.
    """

    def __init__(self, items: NDArray[np.float32], index: NDArray[np.uint8], *, probes: int, threads: int = 1) -> None:
        self.item_count, self.embedding_size = items.shape
        self._items, self._exact = items, ExactTopK(items, threads=threads)
        faiss = _faiss()
        faiss.omp_set_num_threads(threads)
        self._index = faiss.deserialize_index(np.asarray(index))
        self.probes = min(probes, self._index.nlist)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the indices and scores of about the k best items of each query, in rank order.

        As `ExactTopK.search`, but a list may lack items and may be short although enough items are eligible.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries, exclude = self._exact.check_search(queries, exclude, allowed)
        k = min(k, self.item_count)
        indices = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        wanted = np.minimum(math.ceil(1.3 * k) + 8 + np.diff(exclude.offsets), self.item_count)
        # Group queries by the number of requested items, so that a long history slows only its group.
        levels = np.ceil(np.log2(wanted)).astype(int)
        for level in np.unique(levels) if k else ():
            rows = np.flatnonzero(levels == level)
            indices[rows], scores[rows] = self._search_rows(
                queries, rows, int(wanted[rows].max()), k, exclude, self._selector(allowed)
            )
        return indices, scores

    def _selector(self, allowed: NDArray[np.bool_] | None) -> Any:
        faiss = _faiss()
        if allowed is None:
            return faiss.SearchParametersIVF(nprobe=self.probes)
        bits = np.packbits(allowed, bitorder="little")
        return faiss.SearchParametersIVF(nprobe=self.probes, sel=faiss.IDSelectorBitmap(bits))

    def _search_rows(
        self,
        queries: NDArray[np.float32],
        rows: NDArray[np.int64],
        wanted: int,
        k: int,
        exclude: Exclusions,
        parameters: Any,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the lists [rows, k] of some queries, chosen from `wanted` items each."""
        from rec_ray.retrieval.search.int8_scores import chain_scores

        chosen = np.ascontiguousarray(queries[rows])
        found = self._index.search(chosen, wanted, params=parameters)[1]
        row_of_query = np.full(len(queries), -1)
        row_of_query[rows] = np.arange(len(rows))
        owner = row_of_query[owners(exclude)]
        pairs = owner[owner >= 0] * self.item_count + exclude.values[owner >= 0]
        empty = found < 0
        empty |= np.isin(np.arange(len(rows))[:, None] * self.item_count + found, pairs)
        exact = chain_scores(self._items, chosen, np.where(empty, 0, found))
        keys = np.where(empty, NO_ITEM, descending(exact) << ITEM_BITS | found)
        keys.sort(axis=1)
        if keys.shape[1] < k:
            keys = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=NO_ITEM)
        return decode_keys(keys[:, :k])


def recall_of(found: NDArray[np.int64], exact: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return per query the share of its exact list [q, k] that the approximate list contains: [q]; -1 is no item."""
    wanted = exact >= 0
    shift = int(max(found.max(initial=0), exact.max(initial=0))) + 1
    row = np.arange(len(exact))[:, None] * shift
    contained = np.isin(np.where(wanted, row + exact, -1), np.where(found >= 0, row + found, -2)) & wanted
    # Recall is 1.0 when the exact list is empty.
    return np.where(wanted.any(axis=1), contained.sum(axis=1) / np.maximum(1, wanted.sum(axis=1)), 1.0)
