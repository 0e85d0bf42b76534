"""Forgotten users and items: identified by hashes of their ids and removed from tables.

Input: hashes and a table. Output: the table without the rows of these users and items, and without these items in its
lists. The module uses no store and no database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.schema import ITEM_ID, ITEM_IDS, SCORES, SIMILAR_IDS, SIMILAR_SCORES, USER_ID

USER, ITEM = "user", "item"
_LISTS = ((ITEM_IDS, SCORES), (SIMILAR_IDS, SIMILAR_SCORES))


def hash_id(entity: str, each: str) -> str:
    """Return the hash of a forgotten id, which allows comparison and does not reveal the id."""
    return hashlib.sha256(f"{entity}:{each}".encode()).hexdigest()


@dataclass(frozen=True)
class Erased:
    """Hashes of the ids of forgotten users and items."""

    users: frozenset[str] = frozenset()
    items: frozenset[str] = frozenset()

    @classmethod
    def of(cls, users: Iterable[str] = (), items: Iterable[str] = ()) -> Erased:
        """Return the hashes of ids."""
        return cls(frozenset(hash_id(USER, each) for each in users), frozenset(hash_id(ITEM, each) for each in items))

    def __or__(self, other: Erased) -> Erased:
        return Erased(self.users | other.users, self.items | other.items)

    def __bool__(self) -> bool:
        return bool(self.users or self.items)

    def without(self, table: pa.Table) -> pa.Table:
        """Return a table without rows of forgotten users and items, and without forgotten items in its lists.

        A row with a null id stays.
        """
        for column, entity, hashes in ((USER_ID, USER, self.users), (ITEM_ID, ITEM, self.items)):
            if hashes and column in table.column_names:
                found = _is_erased(table[column], entity, hashes)
                if pc.any(found).as_py():
                    table = table.filter(pc.invert(found))
        for ids, scores in _LISTS:
            if self.items and ids in table.column_names:
                table = _without_items(table, ids, scores, self.items)
        return table


def _is_erased(ids: pa.ChunkedArray | pa.Array, entity: str, hashes: frozenset[str]) -> pa.Array:
    """Return a mask of the forgotten ids; each distinct id is hashed once."""
    texts = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    distinct = pc.unique(texts).drop_null()
    found = [hash_id(entity, str(each)) in hashes for each in distinct.to_pylist()]
    return pc.is_in(texts, value_set=distinct.filter(pa.array(found, pa.bool_())))


def _without_items(table: pa.Table, ids: str, scores: str, hashes: frozenset[str]) -> pa.Table:
    lists = table[ids].combine_chunks()
    found = _is_erased(lists.flatten(), ITEM, hashes)
    if not pc.any(found).as_py():
        return table
    keep = pc.invert(found)
    kept = np.concatenate([[0], np.cumsum(keep.to_numpy(zero_copy_only=False))])
    ends = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())])
    offsets = pa.array(kept[ends], pa.int32())
    for name in (ids, scores):
        if name in table.column_names:
            values = table[name].combine_chunks().flatten().filter(keep)
            place = table.column_names.index(name)
            field = table.schema.field(name)
            table = table.set_column(place, field, pa.ListArray.from_arrays(offsets, values).cast(field.type))
    return table
