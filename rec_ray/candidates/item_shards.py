"""The vectors of a catalogue in Ray's object store, in shards: one copy a node, read in place by all its processes.

Embedded items come in as blocks in any order; out goes `ItemShards`, small enough to be handed to every task, which
finds items for queries and gives vectors and ids of items by index. It knows no users, no files and no settings.

A process maps a shard, it does not hold it: where a catalogue is larger than a worker, shards are opened one after
another, and the object store may put those away that nobody reads.
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

from rec_ray.distributed.worker_cache import once_a_process, shared_value
from rec_ray.retrieval.search import ExactTopK, Exclusions, QuantisedItems, TopKSearch, quantise_items, search_shards
from rec_ray.retrieval.search.device import DeviceTopK
from rec_ray.retrieval.search.faiss_ivf import FaissTopK, build_faiss_index
from rec_ray.retrieval.search.float32 import as_tensor
from rec_ray.schema import EMBEDDING, ITEM_ID

AS_HISTORY = "as_history"
SHARD_BYTES = 2**30
"""Vectors of one shard, unless the number of its items is set."""


@dataclass(frozen=True)
class ItemShard:
    """Items that follow each other in the catalogue.

    item_ids: [m].  matrix: [m + 1, d] float32, zeros in row 0.  history: likewise, the items as histories read them;
    often the same array.  quantised: the items as bytes.  index: an inverted file as bytes, when lists are approximate.
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

    counts: items of each shard.  embedding_size: d.  probes: lists of an inverted file that a query reads.
    device: where exact searches run and histories are read, such as "cuda".
    """

    refs: tuple[ray.ObjectRef, ...]
    counts: tuple[int, ...]
    embedding_size: int
    probes: int
    device: str = "cpu"

    @property
    def item_count(self) -> int:
        """Items of the catalogue."""
        return sum(self.counts)

    @property
    def key(self) -> str:
        """A text that changes with the content."""
        return hashlib.sha256(" ".join(ref.hex() for ref in self.refs).encode()).hexdigest()

    def wait(self) -> None:
        """Wait until the shards are made.

        A task that waits for one gives its CPU back, and Ray starts a process more to make it.
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
        """Return catalogue indices (0 on) and scores of the best items, as `ExactTopK.search` does.

        exactly: search exactly where there is an inverted file too.
        """
        return search_shards(self._searches(exactly), queries, k, exclude, allowed)

    def _searches(self, exactly: bool) -> Iterator[TopKSearch]:
        for place, ref in enumerate(self.refs):

            def load(ref: ray.ObjectRef = ref) -> TopKSearch:
                shard: ItemShard = shared_value(ref)
                if exactly or shard.index is None:
                    return shard.search_exactly() if self.device == "cpu" else DeviceTopK(shard.matrix[1:], self.device)
                return FaissTopK(shard.matrix[1:], shard.index, probes=self.probes)

            # What a process keeps open stays in memory: only where that is a single shard.
            yield once_a_process(f"search {self.key} {exactly} {place}", load) if len(self.refs) == 1 else load()

    def history_rows(self, item_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vectors [r, d], as histories read them, and the row of each item in them, shaped as `item_index`; both
        on the device.

        item_index: catalogue indices 1 on; 0 is no item, its vector zeros.
        """
        if len(self.refs) == 1:

            def load() -> torch.Tensor:
                return as_tensor(shared_value(self.refs[0]).history).to(self.device)

            return once_a_process(f"history {self.key}", load), item_index.to(self.device)
        used, places = np.unique(np.append(0, item_index.numpy()), return_inverse=True)
        vectors = np.zeros((len(used), self.embedding_size), np.float32)
        for ref, start, end in self._ranges():
            begin, stop = np.searchsorted(used, [start + 1, end + 1])
            if begin < stop:
                vectors[begin:stop] = shared_value(ref).history[used[begin:stop] - start]
        rows = torch.from_numpy(places[1:].reshape(item_index.shape))
        return torch.from_numpy(vectors).to(self.device), rows.to(self.device)

    def vectors(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors [m, d] of items at catalogue indices [m], 0 on."""
        found = np.empty((len(indices), self.embedding_size), np.float32)
        for ref, start, end in self._ranges():
            inside = np.flatnonzero((indices >= start) & (indices < end))
            if len(inside):
                found[inside] = shared_value(ref).matrix[indices[inside] - start + 1]
        return found

    def id_lists(self, lists: pa.ListArray) -> pa.ListArray:
        """Return lists of item ids for lists of catalogue indices, 0 on; a dictionary holds each id once."""
        indices = lists.flatten().to_numpy()
        occurs = np.zeros(self.item_count, bool)
        occurs[indices] = True
        chosen = np.flatnonzero(occurs)
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
                yield shared_value(ref).item_ids.take(pa.array(inside - start))

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

    blocks: references to Arrow tables of `item_index` (1 on), `item_id`, `embedding` and, where histories read items
    otherwise, `as_history`; in any order.
    shard_items: items of a shard; None takes what `SHARD_BYTES` hold.  device: as in `ItemShards`.
    """
    most = shard_items or max(1, SHARD_BYTES // (4 * embedding_size))
    shards = -(-item_count // most)
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
    # An empty file leaves a block without columns.
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
