"""Encoded catalogue: all items in the order of their index, ready for the item tower.

Input: tables with the schema `CATALOGUE`, in any order and any number of parts. Output: a `Catalogue` with ids and a
`FeatureBatch`; row 0 is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rec_ray.errors import DataError
from rec_ray.retrieval.features.batch import FeatureBatch, FeatureShape
from rec_ray.retrieval.features.preprocessing import EncodedFeatures
from rec_ray.retrieval.ragged import flat_values
from rec_ray.retrieval.ragged import lists_of as lists_of

if TYPE_CHECKING:
    from rec_ray.retrieval.model.towers import TwoTower

Array = npt.NDArray[Any]

CATALOGUE = pa.schema(
    [
        pa.field("item_index", pa.int32(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("id_index", pa.int32(), nullable=False),
        pa.field("known", pa.bool_(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("item_numeric", pa.list_(pa.float32())),
        pa.field("item_tokens", pa.list_(pa.int32())),
        pa.field("item_token_counts", pa.list_(pa.int32())),
        pa.field("item_vector", pa.list_(pa.float32())),
    ]
)
"""One row per item. item_index: 1 .. n by the order of ids. id_index: row of the id table, 0 for items without a row.
known: the item existed at this catalogue's time. count: training positives.
"""


@dataclass(frozen=True)
class Catalogue:
    """The items 1 .. n; row 0 of every array is padding.

    item_ids: [n] strings, item i at index i - 1. id_index: [n + 1] int64. known: [n + 1] bool. count: [n + 1] int64.
    """

    item_ids: pa.Array
    id_index: Tensor
    known: Array
    count: Array
    features: FeatureBatch

    def __len__(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @classmethod
    def from_table(cls, table: pa.Table, shape: FeatureShape) -> Catalogue:
        """Sort rows of `CATALOGUE` by item index.

        Raises:
            DataError: an index is missing or occurs twice.
        """
        table = table.sort_by("item_index").combine_chunks()
        n = table.num_rows
        index = table["item_index"].to_numpy()
        if not np.array_equal(index, np.arange(1, n + 1)):
            raise DataError(f"the encoded catalogue has {n} rows; expected the indices 1 to {n}, each once")
        token_counts = flat_values(table["item_token_counts"]).reshape(n, shape.fields)
        return cls(
            item_ids=table["item_id"].combine_chunks(),
            id_index=torch.from_numpy(np.concatenate([[0], table["id_index"].to_numpy()]).astype(np.int64)),
            known=np.concatenate([[False], table["known"].to_numpy(zero_copy_only=False)]),
            count=np.concatenate([[0], table["count"].to_numpy()]),
            features=FeatureBatch.from_numpy(
                _after_zeros(flat_values(table["item_numeric"]).reshape(n, shape.numeric)),
                flat_values(table["item_tokens"]),
                _after_zeros(token_counts),
                _after_zeros(flat_values(table["item_vector"]).reshape(n, shape.vector)),
            ),
        )

    def to(self, device: torch.device | str) -> Catalogue:
        """Return the catalogue with its tensors on `device`."""
        return Catalogue(self.item_ids, self.id_index.to(device), self.known, self.count, self.features.to(device))

    def embed(self, model: TwoTower, item_index: Tensor) -> Tensor:
        """Return item-tower vectors of some items. item_index: [m] int64 -> [m, d]."""
        return model.embed_items(self.id_index[item_index], self.features.select(item_index))

    def as_history(self, model: TwoTower, item_index: Tensor, vectors: Tensor) -> Tensor:
        """Return the history-input vectors of items. item_index: [m]; vectors: [m, d] of `embed` -> [m, d]."""
        return model.item_tower.as_history(vectors, self.id_index[item_index])


def catalogue_rows(
    item_index: Array, item_ids: pa.Array, id_index: Array, known: Array, count: Array, features: EncodedFeatures
) -> pa.Table:
    """Return encoded items as rows of `CATALOGUE`; all arrays are [n]."""
    n = len(item_index)
    fields = features.token_counts.shape[1]
    row_tokens = features.token_counts.sum(axis=1)
    columns = [
        pa.array(item_index, pa.int32()),
        item_ids,
        pa.array(id_index, pa.int32()),
        pa.array(known, pa.bool_()),
        pa.array(count, pa.int64()),
        lists_of(np.full(n, features.numeric.shape[1]), features.numeric.reshape(-1), pa.float32()),
        lists_of(row_tokens, features.tokens, pa.int32()),
        lists_of(np.full(n, fields), features.token_counts.reshape(-1), pa.int32()),
        lists_of(np.full(n, features.vector.shape[1]), features.vector.reshape(-1), pa.float32()),
    ]
    return pa.table(columns, schema=CATALOGUE)


def _after_zeros(rows: Array) -> Array:
    return np.concatenate([np.zeros((1, rows.shape[1]), rows.dtype), rows])
