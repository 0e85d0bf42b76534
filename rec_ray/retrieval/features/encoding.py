"""Encoding of blocks of raw events as timelines: labels, weights, indices, and each user's distinct feature rows.

Input: a block with all rows of its users, in the order of time and with the query rows after the events. Output: a
table of `TIMELINES`. All operations are vectorised over columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.errors import SchemaError, list_names
from rec_ray.retrieval.features.columns import index_of, is_list
from rec_ray.retrieval.features.corrections import is_superseded
from rec_ray.retrieval.features.dislikes import is_disliked, rename_disliked
from rec_ray.retrieval.features.preprocessing import EncodedFeatures, Preprocessor
from rec_ray.retrieval.features.timelines import QUERIES, TIMELINES
from rec_ray.retrieval.features.user_share import beyond_newest
from rec_ray.retrieval.ragged import lists_of, ragged_positions
from rec_ray.schema import (
    EVENT_CREATED,
    EVENT_KEY,
    EVENT_ORDER,
    EVENT_TIMESTAMP,
    EVENT_TYPE,
    EVENT_VALUE,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
    Split,
    SplitTimes,
)

if TYPE_CHECKING:
    from rec_ray.config.features import InteractionSettings

Array = npt.NDArray[Any]

LEAST_VALUE = 0.05
"""Share of the full weight that the lowest positive value gets, so that every positive has an effect."""


@dataclass(frozen=True)
class Labelling:
    """Rules for the weight and the split label of an event.

    value_maximum: the largest value; the weight of a positive is scaled by its value over it. 0 leaves values out.
    min_positive_value: events with a lower value are negatives; None makes those at or below zero negatives.
    events_per_user: number of a user's newest events per split that are trained on and counted; None means all.
    """

    weights: Mapping[str, float]
    negative_types: tuple[str, ...]
    split: str
    validation_start: datetime
    test_start: datetime
    value_maximum: float = 0.0
    min_positive_value: float | None = None
    events_per_user: int | None = None

    @classmethod
    def of(cls, meaning: InteractionSettings, split: str, times: SplitTimes) -> Labelling:
        """Build it from the declared meaning of events and the split."""
        return cls(
            dict(meaning.weights),
            tuple(meaning.negative_types),
            split,
            times.validation_start,
            times.test_start,
            min_positive_value=meaning.min_positive_value,
        )

    def with_events_per_user(self, events_per_user: int | None) -> Labelling:
        """Return a copy with a bound on the events of one user."""
        return replace(self, events_per_user=events_per_user)

    def with_value_maximum(self, value_maximum: float) -> Labelling:
        """Return a copy with the largest value."""
        return replace(self, value_maximum=value_maximum)


@dataclass(frozen=True)
class LabelledEvents:
    """Usable events of a block with their labels; users without any event are included.

    table: the events' raw rows. rows: all rows of the block, query rows included.
    user: [E] index of each event's user in `user_ids`. row: [E] index of the event in `rows`.
    query: [u, QUERIES] index in `rows` of the user's query rows. weight: [E], see `timelines.TIMELINES`.
    """

    user_ids: pa.Array
    rows: pa.Table
    table: pa.Table
    user: Array
    row: Array
    query: Array
    item_index: Array
    weight: Array
    split: Array
    value_maximum: float
    facts: Mapping[str, int]

    @property
    def is_training(self) -> Array:
        """[E] bool: training events, positives and negatives."""
        return (self.split == Split.TRAIN) & (self.weight >= 0)

    @property
    def is_held_out(self) -> Array:
        """[E] bool: positives of the validation or the test."""
        return (self.split > Split.TRAIN) & (self.weight > 0)

    @property
    def is_before_test(self) -> Array:
        """[E] bool: events before the test."""
        return self.split < Split.TEST


def label_events(block: pa.Table, item_ids: pa.Array, labelling: Labelling) -> LabelledEvents:
    """Find the usable events of a block and label them with item, weight as a positive, and split.

    item_ids: the catalogue in order. Events of unknown items and exact repeats of an event are left out and counted.

    Raises:
        ValueError: the rows of a user are not adjacent, or the number of its query rows is not `QUERIES`.
    """
    block = block.combine_chunks()
    users = block[USER_ID].combine_chunks().dictionary_encode()
    user_of_row = users.indices.to_numpy(zero_copy_only=False)
    if (np.diff(user_of_row) < 0).any():
        raise ValueError("the rows of a user are not adjacent; sort the block by user and time")
    is_event = pc.is_valid(block[ITEM_ID]).to_numpy(zero_copy_only=False)
    # The query rows follow each user's events, in the order of their instants.
    queries = np.flatnonzero(~is_event)
    if not np.array_equal(user_of_row[queries], np.repeat(np.arange(len(users.dictionary)), QUERIES)):
        raise ValueError(f"expected {QUERIES} query rows for each of {len(users.dictionary)} users, got {len(queries)}")
    query = queries.reshape(-1, QUERIES)
    row = np.flatnonzero(is_event)
    newest = ~_superseded(block, user_of_row, row)
    row, superseded = row[newest], int(len(row) - newest.sum())
    item_index = index_of(block[ITEM_ID].take(pa.array(row)), item_ids) + 1
    facts = {"users": len(query), "corrected": superseded, "unknown_items": int((item_index == 0).sum())}
    row, item_index = row[item_index > 0], item_index[item_index > 0]
    fresh = ~_repeats(block, user_of_row, row, item_index)
    facts["duplicates"] = int(len(row) - fresh.sum())
    row, item_index = row[fresh], item_index[fresh]
    table = block.take(pa.array(row))
    user = user_of_row[row]

    values = table[EVENT_VALUE].to_numpy()
    finite = np.isfinite(values)
    facts["bad_values"] = int((~finite & pc.is_valid(table[EVENT_VALUE]).to_numpy(zero_copy_only=False)).sum())
    values = np.where(finite, values, np.nan)
    disliked = is_disliked(values, labelling.min_positive_value)
    facts["values"], facts["disliked"] = int(finite.sum()), int(disliked.sum())
    weight = _weights(table, values, disliked, labelling)
    if disliked.any():
        place, types = table.schema.get_field_index(EVENT_TYPE), table[EVENT_TYPE].combine_chunks()
        own = rename_disliked(types, disliked, labelling.negative_types)
        table = table.set_column(place, table.schema.field(EVENT_TYPE), own)
    split = _splits(table, user, weight > 0, len(query), labelling)
    if labelling.split == "leave_one_out":
        query = _queries_at_events(query, user, row, split, weight > 0)
    beyond = beyond_newest(user, split, labelling.events_per_user)
    facts["beyond_events"], facts["beyond_users"] = int(beyond.sum()), len(np.unique(user[beyond]))
    weight = np.where(beyond & (weight > 0), -weight, weight)
    facts["events"] = len(row)
    facts["training_positives"] = int(((split == Split.TRAIN) & (weight > 0)).sum())
    facts["test_positives"] = int(((split == Split.TEST) & (weight > 0)).sum())
    highest = float(values[finite].max()) if finite.any() else 0.0
    return LabelledEvents(
        users.dictionary, block, table, user, row, query, item_index, weight, split, max(highest, 0.0), facts
    )


def _superseded(block: pa.Table, user_of_row: Array, row: Array) -> Array:
    """Return [E] bool: a later row corrects the event; false without the time at which rows were created."""
    if EVENT_CREATED not in block.column_names or not len(row):
        return np.zeros(len(row), bool)
    events = block.take(pa.array(row))
    key = events[EVENT_KEY].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    created = events[EVENT_CREATED].fill_null(np.iinfo(np.int64).min).to_numpy()
    time = events[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
    # Rows that are not events of the view, such as those of side tables, have no key and correct nothing.
    own = np.where(key < 0, -1 - np.arange(len(key)), key)
    return is_superseded(user_of_row[row], own, time, created, events[EVENT_ORDER].to_numpy())


def _repeats(block: pa.Table, user_of_row: Array, row: Array, item_index: Array) -> Array:
    """Return [E] bool: the event has the same user, time, item, type and value as an earlier one."""
    events = block.take(pa.array(row))
    types = events[EVENT_TYPE].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    times = events[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
    value = np.nan_to_num(events[EVENT_VALUE].to_numpy(), nan=-1e30)
    order = np.lexsort((events[EVENT_ORDER].to_numpy(), value, types, item_index, times, user_of_row[row]))
    keys = (user_of_row[row][order], times[order], item_index[order], types[order], value[order])
    same = np.all([key[1:] == key[:-1] for key in keys], axis=0) if len(order) else np.zeros(0, bool)
    repeats = np.zeros(len(row), bool)
    repeats[order[1:]] = same
    return repeats


def _weights(table: pa.Table, values: Array, disliked: Array, labelling: Labelling) -> Array:
    """Return [E] float32: the weight of an event as a positive, 0 for a negative type or value."""
    types = table[EVENT_TYPE].combine_chunks().dictionary_encode()
    by_type = [
        0.0 if name in labelling.negative_types else labelling.weights.get(name, 1.0)
        for name in types.dictionary.to_pylist()
    ]
    index = types.indices.fill_null(len(by_type)).to_numpy()
    weight = np.array([*by_type, 1.0], np.float32)[index]
    if labelling.value_maximum > 0:
        share = np.clip(values / labelling.value_maximum, LEAST_VALUE, 1.0)
        weight = weight * np.where(np.isnan(share), 1.0, share).astype(np.float32)
    return np.where(disliked, np.float32(0.0), weight)


def _splits(table: pa.Table, user: Array, positive: Array, users: int, labelling: Labelling) -> Array:
    """Return [E] int8 labels: by time, or the last and the last but one positive of each user."""
    if labelling.split == "time":
        times = table[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
        starts = [pa.scalar(t, TIMESTAMP).value for t in (labelling.validation_start, labelling.test_start)]
        return np.searchsorted(np.array(starts), times, side="right").astype(np.int8)
    total = np.bincount(user[positive], minlength=users)
    through = np.cumsum(positive)
    ends = np.cumsum(np.bincount(user, minlength=users))
    # Positives at or after an event, within its user.
    ahead = (np.concatenate([[0], through])[ends])[user] - through + positive
    testable, validatable = total[user] >= 2, total[user] >= 3
    is_test = testable & ((ahead == 0) | ((ahead == 1) & positive))
    is_validation = validatable & (((ahead == 1) & ~positive) | ((ahead == 2) & positive))
    return np.select([is_test, is_validation], [Split.TEST, Split.VALIDATION], Split.TRAIN).astype(np.int8)


def _queries_at_events(query: Array, user: Array, row: Array, split: Array, positive: Array) -> Array:
    """Leave one out: the features of a query are those as of the held-out event itself."""
    query = query.copy()
    for place, label in ((0, Split.VALIDATION), (1, Split.TEST)):
        held_out = (split == label) & positive
        query[user[held_out], place] = row[held_out]
    return query


def encode_timelines(events: LabelledEvents, preprocessor: Preprocessor) -> pa.Table:
    """Encode labelled events as one row of `TIMELINES` per user.

    Raises:
        SchemaError: a feature that the preprocessor reads is missing or cannot be read as its kind.
    """
    users = len(events.user_ids)
    counts = np.bincount(events.user, minlength=users)
    # Rows of the block whose features are needed: those of a user's events, then its query rows.
    needed = np.empty(len(events.row) + QUERIES * users, np.int64)
    ends = np.cumsum(counts + QUERIES)
    needed[ragged_positions(ends - counts - QUERIES, counts)] = events.row
    needed[ragged_positions(ends - QUERIES, np.full(users, QUERIES))] = events.query.reshape(-1)
    owner = np.repeat(np.arange(users), counts + QUERIES)
    table = events.rows.take(pa.array(needed))
    changed = np.concatenate([[True], owner[1:] != owner[:-1]]) if len(owner) else np.zeros(0, bool)
    for name in preprocessor.users.names:
        if name not in table.column_names:
            raise SchemaError(f"there is no user feature {name!r}; the events have {list_names(table.column_names)}")
        changed[1:] |= _differs(table[name].combine_chunks())
    distinct = np.flatnonzero(changed)
    features = preprocessor.users.encode(table.take(pa.array(distinct)))
    rows = np.bincount(owner[distinct], minlength=users)
    own_row = np.cumsum(changed) - 1 - (np.cumsum(rows) - rows)[owner]
    seconds = events.table[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy() // 1_000_000
    columns = [
        events.user_ids,
        lists_of(counts, events.item_index, pa.int32()),
        lists_of(counts, preprocessor.encode_event_types(events.table[EVENT_TYPE]), pa.int32()),
        lists_of(counts, seconds, pa.int64()),
        lists_of(counts, events.weight, pa.float32()),
        lists_of(counts, events.split, pa.int8()),
        lists_of(counts + QUERIES, own_row, pa.int32()),
        *_feature_lists(features, rows),
    ]
    return pa.table(columns, schema=TIMELINES)


def _feature_lists(features: EncodedFeatures, rows: Array) -> list[pa.Array]:
    """Cut encoded feature rows into one list per user. rows: [u] number of rows of each user."""
    tokens = (
        np.add.reduceat(np.append(features.token_counts.sum(axis=1), 0), np.cumsum(rows) - rows)
        if len(rows)
        else np.zeros(0, np.int64)
    )
    return [
        lists_of(rows * features.numeric.shape[1], features.numeric.reshape(-1), pa.float32()),
        lists_of(tokens, features.tokens, pa.int32()),
        lists_of(rows * features.token_counts.shape[1], features.token_counts.reshape(-1), pa.int32()),
        lists_of(rows * features.vector.shape[1], features.vector.reshape(-1), pa.float32()),
    ]


def _differs(column: pa.Array) -> Array:
    """Return [n - 1] bool: whether a row's value differs from that of the previous row."""
    if not is_list(column.type):
        codes = _codes(column)
        return codes[1:] != codes[:-1]
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    counts = np.maximum(lengths, 0)
    first = np.cumsum(counts) - counts
    codes = _codes(pc.list_flatten(column))
    differs = lengths[1:] != lengths[:-1]
    # Rows as long as the previous one are compared value by value.
    row = np.flatnonzero(~differs)
    own, before = (codes[ragged_positions(first[row + k], counts[row])] for k in (1, 0))
    differs[np.repeat(row, counts[row])[own != before]] = True
    return differs


def _codes(values: pa.Array) -> Array:
    """Return an integer code per value, the same for equal values; -1 is null."""
    return values.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
