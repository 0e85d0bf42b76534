"""Item vectors of a catalogue in Ray's object store, in shards: one copy per node, read in place by all its processes.

Input: blocks of embedded items in any order. Output: `ItemShards`, small enough to be passed to every task, which
searches items and returns vectors and ids of items by index.

A process maps a shard into its memory without a copy. A catalogue larger than a worker is opened shard by shard, and
the object store may evict shards that no process reads.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray

from rec_ray.distributed.worker_cache import get_or_create, get_shared
from rec_ray.retrieval.search import ExactTopK, Exclusions, QuantisedItems, TopKSearch, quantise_items, search_shards
from rec_ray.retrieval.search.device import DeviceTopK
from rec_ray.retrieval.search.faiss_ivf import FaissTopK, build_faiss_index
from rec_ray.retrieval.search.float32 import as_tensor
from rec_ray.schema import EMBEDDING, ITEM_ID

AS_HISTORY = "as_history"
SHARD_BYTES = 2**30
"""Largest size of the vectors of a shard, unless the number of its items is set."""


@dataclass(frozen=True)
class ItemShard:
    """Consecutive items of the catalogue.

    item_ids: [m].  matrix: [m + 1, d] float32, zeros in row 0.  history: likewise, the vectors that histories read,
    often the same array.  quantised: the items as bytes.  index: an inverted file as bytes, if lists are approximate.
    """

    item_ids: pa.Array
    matrix: NDArray[np.float32]
    history: NDArray[np.float32]
    quantised: QuantisedItems
    index: NDArray[np.uint8] | None

    def search_exactly(self) -> TopKSearch:
        """Return the exact search of this shard, by one thread."""
        return ExactTopK(self.matrix[1:], threads=1, quantised=self.quantised)


@dataclass(frozen=True)
class ItemShards:
    """References to the shards of a catalogue.

    counts: items of each shard.  embedding_size: d.  probes: lists of an inverted file that a query reads. device:
    device of exact searches and of history vectors, such as "cuda".
    """

    refs: tuple[ray.ObjectRef, ...]
    counts: tuple[int, ...]
    embedding_size: int
    probes: int
    device: str = "cpu"

    @property
    def item_count(self) -> int:
        """Number of items of the catalogue."""
        return sum(self.counts)

    @property
    def key(self) -> str:
        """Cache key; it depends on every field."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def wait(self) -> None:
        """Wait until the shards are made.

        A task that is blocked on a shard releases its CPU, and Ray then starts one more process.
        """
        ray.wait(list(self.refs), num_returns=len(self.refs), fetch_local=False)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None = None,
        allowed: NDArray[np.bool_] | None = None,
        *,
        exactly: bool = False,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return catalogue indices (from 0) and scores of the best items, as `ExactTopK.search` does.

        exactly: search exactly even if there is an inverted file.
        """
        return search_shards(self._searches(exactly), queries, k, exclude, allowed)

    def _searches(self, exactly: bool) -> Iterator[TopKSearch]:
        for place, ref in enumerate(self.refs):

            def load(ref: ray.ObjectRef = ref) -> TopKSearch:
                shard: ItemShard = get_shared(ref)
                if exactly or shard.index is None:
                    return shard.search_exactly() if self.device == "cpu" else DeviceTopK(shard.matrix[1:], self.device)
                return FaissTopK(shard.matrix[1:], shard.index, probes=self.probes)

            # Cache the search only for a single shard, because cached searches stay in memory.
            yield get_or_create(f"search {self.key} {exactly} {place}", load) if len(self.refs) == 1 else load()

    def history_rows(self, item_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vectors [r, d] that histories read, and the row of each item in them, shaped as `item_index`; both on
        the device.

        item_index: catalogue indices from 1; 0 is padding with a vector of zeros.
        """
        if len(self.refs) == 1:

            def load() -> torch.Tensor:
                return as_tensor(get_shared(self.refs[0]).history).to(self.device)

            return get_or_create(f"history {self.key}", load), item_index.to(self.device)
        used, places = np.unique(np.append(0, item_index.numpy()), return_inverse=True)
        vectors = np.zeros((len(used), self.embedding_size), np.float32)
        for ref, start, end in self._ranges():
            begin, stop = np.searchsorted(used, [start + 1, end + 1])
            if begin < stop:
                vectors[begin:stop] = get_shared(ref).history[used[begin:stop] - start]
        rows = torch.from_numpy(places[1:].reshape(item_index.shape))
        return torch.from_numpy(vectors).to(self.device), rows.to(self.device)

    def vectors(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors [m, d] of items at catalogue indices [m], from 0."""
        found = np.empty((len(indices), self.embedding_size), np.float32)
        for ref, start, end in self._ranges():
            inside = np.flatnonzero((indices >= start) & (indices < end))
            if len(inside):
                found[inside] = get_shared(ref).matrix[indices[inside] - start + 1]
        return found

    def id_lists(self, lists: pa.ListArray) -> pa.ListArray:
        """Return lists of item ids for lists of catalogue indices, from 0; a dictionary contains each id once."""
        indices = lists.flatten().to_numpy()
        used = np.zeros(self.item_count, bool)
        used[indices] = True
        chosen = np.flatnonzero(used)
        place = np.zeros(self.item_count, np.int32)
        place[chosen] = np.arange(len(chosen), dtype=np.int32)
        names = pa.concat_arrays([pa.array([], pa.string()), *self._ids(chosen)])
        ids = pa.DictionaryArray.from_arrays(pa.array(place[indices]), names)
        first = lists.offsets[0].as_py() if len(lists) else 0
        return pa.ListArray.from_arrays(pc.subtract(lists.offsets, pa.scalar(first, pa.int32())), ids)

    def _ids(self, indices: NDArray[np.int64]) -> Iterator[pa.Array]:
        """Yield the ids of items at ascending catalogue indices, shard by shard."""
        for ref, start, end in self._ranges():
            inside = indices[np.searchsorted(indices, start) : np.searchsorted(indices, end)]
            if len(inside):
                yield get_shared(ref).item_ids.take(pa.array(inside - start))

    def _ranges(self) -> Iterator[tuple[ray.ObjectRef, int, int]]:
        ends = np.cumsum(self.counts)
        for ref, count, end in zip(self.refs, self.counts, ends.tolist(), strict=True):
            yield ref, end - count, end


def make_shards(
    blocks: list[ray.ObjectRef],
    item_count: int,
    embedding_size: int,
    *,
    shard_items: int | None,
    approximate: bool,
    probes: int,
    device: str = "cpu",
) -> ItemShards:
    """Put embedded items into shards, each made by a task of its own.

    blocks: references to Arrow tables of `item_index` (from 1), `item_id`, `embedding` and, if histories read other
    vectors, `as_history`; in any order. shard_items: items of a shard; None takes as many as `SHARD_BYTES` hold.
    device: as in `ItemShards`.
    """
    shard_size = shard_items or max(1, SHARD_BYTES // (4 * embedding_size))
    shards = -(-item_count // shard_size)
    bounds = np.linspace(0, item_count, shards + 1).astype(int).tolist()
    refs = tuple(
        _make_shard.remote(start, end, embedding_size, approximate, *blocks)
        for start, end in itertools.pairwise(bounds)
    )
    return ItemShards(refs, tuple(np.diff(bounds).tolist()), embedding_size, probes, device)


@ray.remote(num_cpus=1)
def _make_shard(start: int, end: int, size: int, approximate: bool, *blocks: pa.Table) -> ItemShard:
    """Return the items of indices `start` + 1 to `end`."""
    matrices = {EMBEDDING: np.zeros((end - start + 1, size), np.float32)}
    ids, places = [], []
    # An empty file gives a block without columns.
    for block in (block for block in blocks if block.num_rows):
        index = block["item_index"].to_numpy()
        inside = np.flatnonzero((index > start) & (index <= end))
        if not len(inside):
            continue
        chosen = block.take(pa.array(inside)) if len(inside) < len(index) else block
        for name in {EMBEDDING, AS_HISTORY}.intersection(block.column_names):
            vectors = chosen[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            matrix = matrices.setdefault(name, np.zeros_like(matrices[EMBEDDING]))
            matrix[index[inside] - start] = vectors.reshape(len(inside), size)
        ids.append(chosen[ITEM_ID].combine_chunks())
        places.append(index[inside])
    item_ids = pa.concat_arrays(ids).take(pa.array(np.argsort(np.concatenate(places))))
    matrix = matrices[EMBEDDING]
    index = build_faiss_index(matrix[1:]) if approximate else None
    return ItemShard(item_ids, matrix, matrices.get(AS_HISTORY, matrix), quantise_items(matrix[1:]), index)
