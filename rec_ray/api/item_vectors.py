"""Item vectors of a version in memory: ids, the vectors that are searched, and those that histories read.

Input: ids and vectors of a version, or raw items. Output: arrays and an exact search. Item indices count from 0 in the
search and from 1 in timelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from rec_ray.errors import DataError
from rec_ray.retrieval.features.catalogue import Catalogue, catalogue_rows
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_catalogue
from rec_ray.retrieval.ragged import flat_values
from rec_ray.retrieval.search import ExactTopK, quantise_items
from rec_ray.retrieval.search.exact import FEWEST_ITEMS

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ItemVectors:
    """Items of a version, sorted by id.

    matrix: [n + 1, d] float32, zeros in row 0. history: [n + 1, d], the vectors that histories read. index: search of
    `matrix[1:]`. rows: item id -> row of `matrix`.
    """

    item_ids: pa.Array
    matrix: npt.NDArray[np.float32]
    history: Tensor
    index: ExactTopK
    rows: Mapping[str, int]

    @classmethod
    @torch.inference_mode()
    def of(cls, bundle: TwoTowerBundle, item_ids: pa.Array, embedding: pa.Array) -> ItemVectors:
        """Sort items by id and index their vectors. embedding: [n] lists of d numbers.

        Raises:
            DataError: a vector has another length or is not finite, or an id occurs twice.
        """
        n, size = len(item_ids), bundle.embedding_size
        lengths = pc.list_value_length(embedding)
        if n and (lengths.null_count or pc.min(lengths).as_py() != size or pc.max(lengths).as_py() != size):
            raise DataError(
                f"the item vectors have {pc.min(lengths)} to {pc.max(lengths)} numbers; the model has {size}"
            )
        order = pc.sort_indices(item_ids)
        ids = item_ids.take(order)
        if len(pc.unique(ids)) != n:
            raise DataError("an item has two vectors; were the item vectors of two versions mixed?")
        vectors = flat_values(embedding.cast(pa.list_(pa.float32()))).reshape(n, size)
        matrix = np.concatenate([np.zeros((1, size), np.float32), vectors[order.to_numpy()]])
        # Few items are searched without a pass over bytes.
        quantised = quantise_items(matrix[1:]) if n >= FEWEST_ITEMS else None
        index = ExactTopK(matrix[1:], threads=1, quantised=quantised)
        history = torch.from_numpy(matrix)
        if bundle.model.item_tower.history_ids is not None:
            rows = torch.from_numpy(bundle.preprocessor.encode_item_ids(ids)).long()
            own = bundle.model.item_tower.as_history(history[1:], rows)
            history = torch.cat([history[:1], own])
        return cls(ids, matrix, history, index, {each: row for row, each in enumerate(ids.to_pylist(), 1)})

    def places(self, item_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the indices, from 0, of the known ones of some items."""
        found = [self.rows[each] - 1 for each in item_ids if each in self.rows]
        return np.array(found, np.int64)


@torch.inference_mode()
def embed_item_rows(bundle: TwoTowerBundle, table: pa.Table, item_ids: pa.Array) -> npt.NDArray[np.float32]:
    """Return the vectors [n, d] of items. table: [n] rows with the raw features of the model.

    Raises:
        SchemaError: a feature is missing or has another type than declared.
    """
    n = len(item_ids)
    if not n:
        return np.zeros((0, bundle.embedding_size), np.float32)
    preprocessor = bundle.preprocessor
    encoded = preprocessor.items.encode(table)
    ones = np.ones(n, bool)
    id_index = preprocessor.encode_item_ids(item_ids)
    rows = catalogue_rows(np.arange(1, n + 1), item_ids, id_index, ones, np.zeros(n), encoded)
    catalogue = Catalogue.from_table(rows, preprocessor.items.shape)
    vectors: npt.NDArray[np.float32] = embed_catalogue(bundle.model, catalogue)[1:].numpy()
    return vectors
