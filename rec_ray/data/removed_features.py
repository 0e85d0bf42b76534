"""Columns of nulls for features that a stored model reads and the settings no longer declare.

Input: loaded tables and the preprocessor of the model. Output: the tables with those columns. The model
then takes each such feature as unknown, so that it can be compared on the features that both versions read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from rec_ray.contracts import FeatureTables
from rec_ray.data.item_texts import TEXT_VECTOR
from rec_ray.schema import TIMESTAMP, FeatureDeclaration

if TYPE_CHECKING:
    from rec_ray.config import FeatureSettings
    from rec_ray.retrieval.features.preprocessing import Preprocessor

TYPES = {"numeric": pa.float64(), "timestamp": TIMESTAMP, "vector": pa.list_(pa.float32())}
"""Kind of a feature -> type of its nulls; other kinds are read from strings."""


def removed_features(preprocessor: Preprocessor, features: FeatureSettings) -> tuple[str, ...]:
    """Return the names of the features that only the model reads."""
    users = _removed(preprocessor.users.declarations, features.user)
    return (*users, *_removed(preprocessor.items.declarations, features.item))


def add_removed_features(tables: FeatureTables, preprocessor: Preprocessor, features: FeatureSettings) -> FeatureTables:
    """Return the tables with a column of nulls for each feature that only the model reads."""
    users = _removed(preprocessor.users.declarations, features.user)
    items = _removed(preprocessor.items.declarations, features.item)
    if users:
        rows = tables.interactions.map_batches(add_nulls, batch_size=None, batch_format="pyarrow", fn_args=(users,))
        tables = dataclasses.replace(tables, interactions=rows)
    if items:
        rows = tables.items.map_batches(add_nulls, batch_size=None, batch_format="pyarrow", fn_args=(items,))
        tables = dataclasses.replace(tables, items=rows)
    return tables


def _removed(
    read: Mapping[str, FeatureDeclaration], declared: Mapping[str, FeatureDeclaration]
) -> dict[str, pa.DataType]:
    missing = {name: each for name, each in read.items() if name not in declared and name != TEXT_VECTOR}
    return {name: TYPES.get(each.kind, pa.string()) for name, each in missing.items()}


def add_nulls(block: pa.Table, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """Return a block with a column of nulls for each name that it lacks."""
    for name, kind in columns.items():
        if block.num_rows and name not in block.column_names:
            block = block.append_column(name, pa.nulls(block.num_rows, kind))
    return block
