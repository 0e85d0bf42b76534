"""Survey and encoding of one block of events or items, and the fitting of the preprocessor from the surveys.

Input: Arrow tables with all rows of their users, or with both instants of their items. Output: counts and statistics
that add up over blocks, a preprocessor, and encoded rows. All functions are pure, without Ray.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.config import FeatureSettings
from rec_ray.data.event_notes import EventFacts
from rec_ray.data.feature_coverage import Coverage, cover_users
from rec_ray.errors import DataError, EmptyDataError
from rec_ray.retrieval.features.catalogue import CATALOGUE, catalogue_rows
from rec_ray.retrieval.features.columns import index_of
from rec_ray.retrieval.features.encoding import Labelling, encode_timelines, label_events
from rec_ray.retrieval.features.preprocessing import FeatureStatistics, Preprocessor, collect_statistics, fit_features
from rec_ray.retrieval.features.timelines import TIMELINES
from rec_ray.retrieval.features.user_share import largest_user
from rec_ray.retrieval.profiles.data_profile import DataProfile, profile_events, profile_items
from rec_ray.schema import (
    AS_OF,
    FIRST_SEEN,
    INTERACTIONS,
    ITEM_ID,
    RAW_ITEM,
    RAW_NOW,
    RAW_TEST,
    TIMESTAMP,
    SplitTimes,
    require_columns,
)

NOW = 2
"""Index of the row as of now among a user's query rows."""


@dataclass
class BlockSurvey:
    """Counts and statistics of blocks, from which the preprocessor is fitted; `merge` adds them up."""

    users: FeatureStatistics = field(default_factory=FeatureStatistics)
    types: Counter[str] = field(default_factory=Counter)
    item_positives: Counter[str] = field(default_factory=Counter)
    items_held_out: Counter[str] = field(default_factory=Counter)
    items_before_test: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    value_maximum: float = 0.0
    coverage: Coverage = field(default_factory=Coverage)
    unknown_items: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    largest_user: tuple[str, int] = ("", 0)
    profile: DataProfile = field(default_factory=DataProfile)

    @property
    def event_facts(self) -> EventFacts:
        """Counts of the events for notes."""
        facts = self.facts
        return EventFacts(facts["events"], self.types, facts["values"], facts["disliked"], self.largest_user)

    def merge(self, other: BlockSurvey) -> BlockSurvey:
        """Add the survey of another block to this one."""
        self.users = self.users.merge(other.users)
        for mine, theirs in (
            (self.types, other.types),
            (self.item_positives, other.item_positives),
            (self.items_held_out, other.items_held_out),
            (self.items_before_test, other.items_before_test),
            (self.facts, other.facts),
        ):
            mine.update(theirs)
        self.value_maximum = max(self.value_maximum, other.value_maximum)
        self.coverage.merge(other.coverage)
        self.unknown_items |= other.unknown_items
        self.largest_user = max(self.largest_user, other.largest_user, key=lambda user: (user[1], user[0]))
        self.profile.merge(other.profile)
        return self


def survey_block(
    block: pa.Table, item_ids: pa.Array, labelling: Labelling, features: FeatureSettings | None
) -> BlockSurvey:
    """Survey the events of a block. item_ids: the sorted catalogue. features: to collect statistics of, or None.

    Raises:
        SchemaError: a column is missing or has another type.
    """
    if block.num_rows == 0:
        return BlockSurvey()
    require_columns(block, INTERACTIONS, what="the interactions")
    events = label_events(block, item_ids, labelling)
    survey = BlockSurvey(facts=Counter(events.facts), value_maximum=events.value_maximum)
    survey.largest_user = largest_user(events.user, events.user_ids)
    survey.types.update(_counts(events.table["event_type"].drop_null()))
    training = pa.array(events.is_training)
    positive = pa.array(events.is_training & (events.weight > 0))
    survey.item_positives.update(_counts(events.table[ITEM_ID].filter(positive)))
    survey.items_held_out.update(_counts(events.table[ITEM_ID].filter(pa.array(events.is_held_out))))
    survey.items_before_test.update(_counts(events.table[ITEM_ID].filter(pa.array(events.is_before_test))))
    unknown = block[ITEM_ID].drop_null().unique()
    survey.unknown_items.update(unknown.filter(pc.invert(pc.is_in(unknown, value_set=item_ids))).to_pylist())
    if features is not None:
        survey.users = collect_statistics(events.table.filter(training), features.user)
        survey.profile = profile_events(events, item_ids, features.user)
        learned = events.is_training
        survey.coverage = cover_users(
            events.rows,
            events.row[learned],
            events.user[learned],
            events.query[:, NOW],
            events.user_ids,
            list(features.user),
        )
    return survey


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column)
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def survey_items(
    block: pa.Table, features: FeatureSettings | None, times: SplitTimes
) -> tuple[pa.Array, FeatureStatistics]:
    """Return the item ids of a block and the statistics of their features as of the test cut-off."""
    if block.num_rows == 0:
        return pa.array([], pa.string()), FeatureStatistics()
    ids = pc.unique(block[ITEM_ID])
    if features is None:
        return ids, FeatureStatistics()
    then = block.filter(pc.equal(block[AS_OF], pa.scalar(times.test_start, TIMESTAMP)))
    return ids, collect_statistics(then.filter(pc.less_equal(then[FIRST_SEEN], then[AS_OF])), features.item)


def profile_catalogue(block: pa.Table, features: FeatureSettings | None, times: SplitTimes) -> DataProfile:
    """Return the profile of the items of a block with their features as of now."""
    if features is None or not block.num_rows:
        return DataProfile()
    return profile_items(_rows_as_of(block, times.as_of, times.test_start, first=False), features.item)


def _rows_as_of(block: pa.Table, instant: datetime, other: datetime, *, first: bool) -> pa.Table:
    """Return the rows of one instant; if both instants are equal, the first or the second half of the rows."""
    if instant == other:
        half = block.num_rows // 2
        return block.slice(0, half) if first else block.slice(half)
    return block.filter(pc.equal(block[AS_OF], pa.scalar(instant, TIMESTAMP)))


def require_positives(survey: BlockSurvey, features: FeatureSettings, times: SplitTimes, *further: str) -> None:
    """Check that an event remains for training. further: sentences that the message adds.

    Raises:
        EmptyDataError: there is none.
    """
    if survey.item_positives:
        return
    low = survey.facts["disliked"]
    raise EmptyDataError(
        f"no positive event before {times.test_start:%Y-%m-%d %H:%M} remains for training; event "
        f"types are {dict(survey.types)}, of which {features.interaction.negative_types} are declared negative"
        + (f", and {low:,} events are negative by features.interaction.min_positive_value" if low else "")
        + "".join(f". {said}" for said in further)
    )


def fit_preprocessor(
    survey: BlockSurvey, items: FeatureStatistics, features: FeatureSettings, *, refit: bool
) -> Preprocessor:
    """Fit vocabularies and scales on the training events. refit: items of held-out events get rows too."""
    fit = functools.partial(fit_features, text_buckets=features.text_buckets, max_vocabulary=features.max_vocabulary)
    return Preprocessor(
        users=fit(survey.users, features.user),
        items=fit(items, features.item),
        item_ids=tuple(sorted({*survey.item_positives, *(survey.items_held_out if refit else ())})),
        event_types=tuple(sorted(survey.types)),
    )


def encode_users(
    block: pa.Table, item_ids: pa.Array, preprocessor: Preprocessor, labelling: Labelling, raw: pa.Schema
) -> pa.Table:
    """Encode the users of a block and append the raw fields, as of now and as of the test cut-off."""
    if block.num_rows == 0:
        return _with_raw(_with_raw(TIMELINES.empty_table(), RAW_NOW, raw, block, []), RAW_TEST, raw, block, [])
    events = label_events(block, item_ids, labelling)
    table = encode_timelines(events, preprocessor)
    table = _with_raw(table, RAW_NOW, raw, events.rows, events.query[:, 2])
    return _with_raw(table, RAW_TEST, raw, events.rows, events.query[:, 1])


def _with_raw(encoded: pa.Table, beginning: str, raw: pa.Schema, rows: pa.Table, places: Any) -> pa.Table:
    """Append the raw fields of the rows at some indices, one for each encoded row."""
    for column in raw:
        values = rows[column.name].take(pa.array(places, pa.int64())) if encoded.num_rows else pa.array([], column.type)
        encoded = encoded.append_column(f"{beginning}{column.name}", pc.cast(values, column.type))
    return encoded


def encode_items(
    block: pa.Table,
    item_ids: pa.Array,
    preprocessor: Preprocessor,
    counts: tuple[Mapping[str, int], Mapping[str, int]],
    instant: datetime,
    other: datetime,
    first: bool,
    raw: pa.Schema,
) -> pa.Table:
    """Encode the rows of one instant; see `_rows_as_of`."""
    if block.num_rows == 0:
        return _with_raw(CATALOGUE.empty_table(), RAW_ITEM, raw, block, [])
    positives, before_test = counts
    rows = _rows_as_of(block, instant, other, first=first)
    ids = rows[ITEM_ID].combine_chunks() if isinstance(rows[ITEM_ID], pa.ChunkedArray) else rows[ITEM_ID]
    index = index_of(ids, item_ids) + 1
    if (index == 0).any():
        raise DataError("the catalogue changed during encoding; run it again")
    names = ids.to_pylist()
    known = pc.less_equal(rows[FIRST_SEEN], rows[AS_OF]).to_numpy(zero_copy_only=False)
    known = known | np.array([name in before_test for name in names], bool)
    count = np.array([positives.get(name, 0) for name in names], np.int64)
    id_index = preprocessor.encode_item_ids(ids)
    encoded = catalogue_rows(index, ids, id_index, known, count, preprocessor.items.encode(rows))
    return _with_raw(encoded, RAW_ITEM, raw, rows, np.arange(rows.num_rows))
