"""Column names, Arrow schemas of the tables between steps, and declarations of features.

Steps take every column name from here and check each incoming table with `require_columns`. The module uses Arrow types
only: no settings, no Feast, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import ClassVar, Literal

import pyarrow as pa

from rec_ray.errors import SchemaError, list_names

USER_ID = "user_id"
ITEM_ID = "item_id"
EVENT_TIMESTAMP = "event_timestamp"
EVENT_TYPE = "event_type"
EVENT_VALUE = "event_value"
EVENT_ORDER = "event_order"
SIGN_UP = "sign_up"
FIRST_SEEN = "first_seen"
AS_OF = "as_of"
EMBEDDING = "embedding"
ITEM_IDS = "item_ids"
SCORES = "scores"
MODEL_VERSION = "model_version"
METHOD = "method"
EMPTIED_BY = "emptied_by"
SIMILAR_IDS = "similar_item_ids"
SIMILAR_SCORES = "similar_scores"
RAW_ITEM, RAW_NOW, RAW_TEST = "raw_", "raw_now_", "raw_test_"
"""Prefixes of columns with raw fields: of an item, of a user as of now, and of a user as of the test."""

BUNDLE_METADATA = "metadata.json"
"""File of a stored bundle with its metadata; readable without torch."""

TIMESTAMP = pa.timestamp("us", tz="UTC")


class Split(IntEnum):
    """Label of an event in encoded timelines: learned from, used for early stopping, held out for the metrics."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


class QueryTime(IntEnum):
    """Query row of a user in encoded timelines: the user's features as of the start of a split, or as of now."""

    VALIDATION = 0
    TEST = 1
    NOW = 2


@dataclass(frozen=True)
class SplitTimes:
    """Start times of the splits, and the time of the data; all are UTC.

    With the split `leave_one_out` both starts equal `as_of`: events are divided by their order, not by time.
    """

    validation_start: datetime
    test_start: datetime
    as_of: datetime


Kind = Literal["numeric", "categorical", "categories", "category_path", "text", "timestamp", "vector"]
"""Kind of a feature, which decides its encoding.

numeric: a number. categorical: one value. categories: several values, as a list or as a string with a separator.
category_path: a path from general to special; each prefix is a token. text: word and character n-grams.
timestamp: a point in time. vector: precomputed numbers of a fixed length.
"""


@dataclass(frozen=True)
class FeatureDeclaration:
    """Declaration of a feature in the settings, stored under its name."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Kind
    separator: str | None = None
    """Splits a string into values; only for `categories` and `category_path` whose columns are no lists."""
    length: int | None = None
    """Number of values of a `vector`."""

    def __post_init__(self) -> None:
        """Refuse an unusable declaration.

        Raises:
            ValueError: the separator is empty, or a vector has no length.
        """
        if self.separator == "":
            raise ValueError("the separator is empty; omit it for lists and single values")
        if self.kind == "vector" and (self.length is None or self.length < 1):
            raise ValueError(f"a vector needs its length, a number above 0; got {self.length}")


INTERACTIONS = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string()),
        pa.field(EVENT_TIMESTAMP, TIMESTAMP, nullable=False),
        pa.field(EVENT_ORDER, pa.int64(), nullable=False),
        pa.field(EVENT_TYPE, pa.string()),
        pa.field(EVENT_VALUE, pa.float32()),
    ]
)
"""One row per event; the declared user features as of the event follow these columns.

`event_order` numbers the rows in the order of the source, so that simultaneous events keep their order. A row with a
null `item_id` is a query row: it has the features of the user as of its timestamp and is no event.
"""

EVENT_CREATED, EVENT_KEY = "event_created", "event_key"
REVISIONS = pa.schema([pa.field(EVENT_CREATED, pa.int64()), pa.field(EVENT_KEY, pa.string())])
"""Further columns of the interactions where their source has a `created_timestamp_column`: when a row was created, and
the join keys of its view beside the user. Of the rows of a user with one key and time the one created last counts."""
SIGN_UP_FIELD = pa.field(SIGN_UP, pa.string())

ITEM_EMBEDDINGS = pa.schema(
    [pa.field(ITEM_ID, pa.string(), nullable=False), pa.field(EMBEDDING, pa.list_(pa.float32()), nullable=False)]
)
USER_EMBEDDINGS = pa.schema(
    [pa.field(USER_ID, pa.string(), nullable=False), pa.field(EMBEDDING, pa.list_(pa.float32()), nullable=False)]
)
RECOMMENDATIONS = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(ITEM_IDS, pa.list_(pa.string()), nullable=False),
        pa.field(SCORES, pa.list_(pa.float32()), nullable=False),
        pa.field(METHOD, pa.string(), nullable=False),
    ]
)
"""method: `model`, or `popularity` for a user without events and features."""
SIMILAR_ITEMS = pa.schema(
    [
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field(SIMILAR_IDS, pa.list_(pa.string()), nullable=False),
        pa.field(SIMILAR_SCORES, pa.list_(pa.float32()), nullable=False),
    ]
)

USER_TIMELINES = pa.schema(
    [
        pa.field(USER_ID, pa.string()),
        pa.field("events", pa.int64()),
        pa.field("newest", TIMESTAMP),
        pa.field("checksum", pa.uint64()),
    ]
)
"""Timelines as they were read for some candidates: number of events, time of the newest, checksum of all of them."""


def require_columns(table: pa.Table | pa.Schema, schema: pa.Schema, *, what: str) -> None:
    """Check that a table has the columns of a schema with their types; additional columns are allowed.

    Raises:
        SchemaError: a column is missing or has another type.
    """
    have = table if isinstance(table, pa.Schema) else table.schema
    missing = [name for name in schema.names if name not in have.names]
    if missing:
        raise SchemaError(f"{what} lacks the columns {list_names(missing)}; it has {list_names(have.names)}")
    for field in schema:
        found = have.field(field.name).type
        if not _same_type(found, field.type):
            raise SchemaError(f"{what} has column {field.name!r} of type {found}; expected {field.type}")


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Compare two types, ignoring the name of a list's element and the size of offsets."""
    if pa.types.is_list(expected) and (pa.types.is_list(found) or pa.types.is_large_list(found)):
        return _same_type(found.value_type, expected.value_type)
    if pa.types.is_string(expected) and pa.types.is_large_string(found):
        return True
    return bool(found.equals(expected))
