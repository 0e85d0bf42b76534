"""Creates `TrainingData` from `FeatureTables`: surveys the events, fits the preprocessor, and writes encoded Parquet.

Input: blocks with all rows of their users. Output under the prefix of the run: encoded timelines and two encoded
catalogues (as of the test cut-off, and as of now), with the raw fields that filters read. The preprocessor is fitted on
training events only, and no process holds a table of all events.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from rec_ray.config import FeatureSettings
from rec_ray.contracts import FeatureTables, TrainingData
from rec_ray.data.event_notes import EventFacts, log_events
from rec_ray.data.feature_coverage import Coverage, cover_users
from rec_ray.data.late_features import describe_ids, drop_late_features
from rec_ray.data.read_timelines import summarise_events
from rec_ray.data.user_events import events_per_user
from rec_ray.distributed.parquet_source import ROW_GROUP
from rec_ray.distributed.worker_cache import get_shared
from rec_ray.errors import DataError, EmptyDataError
from rec_ray.logs import LOGGER
from rec_ray.retrieval.features.catalogue import CATALOGUE, catalogue_rows
from rec_ray.retrieval.features.columns import index_of
from rec_ray.retrieval.features.encoding import Labelling, encode_timelines, label_events
from rec_ray.retrieval.features.preprocessing import FeatureStatistics, Preprocessor, collect_statistics, fit_features
from rec_ray.retrieval.features.timelines import TIMELINES
from rec_ray.retrieval.features.user_share import largest_user
from rec_ray.retrieval.profiles.data_profile import PROFILE, DataProfile, profile_events, profile_items
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
from rec_ray.storage.object_store import Storage

NOW = 2
"""Index of the row as of now among a user's query rows."""
TIMELINES_FOLDER, CATALOGUE_FOLDER, CATALOGUE_NOW_FOLDER = "timelines", "catalogue", "catalogue_now"
READ_FOLDER = "read_timelines"


@dataclass
class _Survey:
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
        facts = self.facts
        return EventFacts(facts["events"], self.types, facts["values"], facts["disliked"], self.largest_user)

    def merge(self, other: _Survey) -> _Survey:
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


def prepare_training_data(
    tables: FeatureTables, features: FeatureSettings, split: str, storage: Storage, prefix: str, *, refit: bool = False
) -> TrainingData:
    """Fit the preprocessor on the training events and write timelines and catalogues under `prefix`.

    split: `time` or `leave_one_out`, as in the settings.
    refit: True if a refit learns from the held-out events; their items then have a row of their own too.

    Raises:
        EmptyDataError: no positive event remains for training.
        SchemaError: a declared feature cannot be read as its kind.
        DataError: all features of users, or all of items, were unknown when most events happened.
    """
    interactions = tables.interactions.materialize()
    items = tables.items.materialize()
    item_ids, item_statistics, profile = _survey_items(items, features, tables.split_times)
    item_ids_ref = ray.put(item_ids)
    most = events_per_user(interactions, features.interaction.events_per_user)
    labelling = Labelling.of(features.interaction, split, tables.split_times).with_events_per_user(most)
    survey = _survey_interactions(interactions, item_ids_ref, labelling, features)
    survey.notes += log_events(survey.facts, survey.event_facts, features.interaction, most)
    known_items = {*survey.items_before_test, *survey.items_held_out}
    unmatched = describe_ids(survey.coverage, {*survey.unknown_items, *known_items}, item_ids)
    if not survey.item_positives:
        low = survey.facts["disliked"]
        raise EmptyDataError(
            f"no positive event before {tables.split_times.test_start:%Y-%m-%d %H:%M} remains for training; event "
            f"types are {dict(survey.types)}, of which {features.interaction.negative_types} are declared negative"
            + (f", and {low:,} events are negative by features.interaction.min_positive_value" if low else "")
            + "".join(f". {said}" for said in unmatched)
        )
    features, late = drop_late_features(features, survey.coverage, items, survey.items_before_test, tables.notes)
    for said in (*unmatched, *late):
        LOGGER.warning("%s", said)
    fit = functools.partial(fit_features, text_buckets=features.text_buckets, max_vocabulary=features.max_vocabulary)
    preprocessor = Preprocessor(
        users=fit(survey.users, features.user),
        items=fit(item_statistics, features.item),
        item_ids=tuple(sorted({*survey.item_positives, *(survey.items_held_out if refit else ())})),
        event_types=tuple(sorted(survey.types)),
    )
    labelling = labelling.with_value_maximum(survey.value_maximum)
    survey.notes += [*tables.notes, *unmatched, *late]
    data = _write(
        interactions, items, item_ids_ref, len(item_ids), preprocessor, labelling, survey, tables, storage, prefix
    )
    profile.merge(survey.profile)
    profile.as_of, profile.kept = int(tables.split_times.as_of.timestamp()), tables.rows.kept
    profile.future, profile.sources = tables.rows.in_the_future, dict(tables.sources)
    storage.write_bytes(f"{prefix}/{PROFILE}", profile.to_json())
    return replace(data, profile=f"{prefix}/{PROFILE}")


def encode_tables(
    tables: FeatureTables,
    preprocessor: Preprocessor,
    features: FeatureSettings,
    split: str,
    storage: Storage,
    prefix: str,
    *,
    item_ids: pa.Array | None = None,
) -> TrainingData:
    """Encode newer tables with the preprocessor of a stored model; nothing is fitted.

    item_ids: the sorted ids of the catalogue; None takes those of the tables. Other items are left out.

    Raises:
        SchemaError: a feature that the model reads is missing.
    """
    interactions = tables.interactions.materialize()
    items = tables.items.materialize()
    if item_ids is None:
        item_ids, _, _ = _survey_items(items, None, tables.split_times)
    else:
        items = items.map_batches(
            _of_items, batch_size=None, batch_format="pyarrow", fn_kwargs={"item_ids": ray.put(item_ids)}
        )
    item_ids_ref = ray.put(item_ids)
    most = events_per_user(interactions, features.interaction.events_per_user)
    labelling = Labelling.of(features.interaction, split, tables.split_times).with_events_per_user(most)
    survey = _survey_interactions(interactions, item_ids_ref, labelling, None)
    survey.notes += log_events(survey.facts, survey.event_facts, features.interaction, most)
    labelling = labelling.with_value_maximum(survey.value_maximum)
    return _write(
        interactions, items, item_ids_ref, len(item_ids), preprocessor, labelling, survey, tables, storage, prefix
    )


def _write(
    interactions: ray.data.Dataset,
    items: ray.data.Dataset,
    item_ids: ray.ObjectRef,
    item_count: int,
    preprocessor: Preprocessor,
    labelling: Labelling,
    survey: _Survey,
    tables: FeatureTables,
    storage: Storage,
    prefix: str,
) -> TrainingData:
    fitted = ray.put(preprocessor)
    counts = ray.put((survey.item_positives, survey.items_before_test))
    storage.delete_prefix(prefix)

    def write(dataset: ray.data.Dataset, encode: Callable[..., pa.Table], folder: str, **arguments: Any) -> str:
        path = storage.path(prefix, folder)
        encoded = dataset.map_batches(encode, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments)
        encoded.write_parquet(path, filesystem=storage.filesystem, row_group_size=ROW_GROUP)
        return path

    timelines = write(
        interactions,
        _encode_block,
        TIMELINES_FOLDER,
        item_ids=item_ids,
        fitted=fitted,
        labelling=labelling,
        raw=tables.raw_users,
    )
    read_timelines = write(interactions, summarise_events, READ_FOLDER)
    times = tables.split_times
    catalogue = write(
        items,
        _encode_items,
        CATALOGUE_FOLDER,
        item_ids=item_ids,
        fitted=fitted,
        counts=counts,
        instant=times.test_start,
        other=times.as_of,
        first=True,
        raw=tables.raw_items,
    )
    catalogue_now = write(
        items,
        _encode_items,
        CATALOGUE_NOW_FOLDER,
        item_ids=item_ids,
        fitted=fitted,
        counts=counts,
        instant=times.as_of,
        other=times.test_start,
        first=False,
        raw=tables.raw_items,
    )
    return TrainingData(
        timelines=timelines,
        catalogue=catalogue,
        catalogue_now=catalogue_now,
        preprocessor=preprocessor,
        users=survey.facts["users"],
        items=item_count,
        events=survey.facts["events"],
        positives=survey.facts["training_positives"],
        split_times=times,
        rows=tables.rows,
        facts=dict(survey.facts),
        notes=tuple(survey.notes),
        read_timelines=read_timelines,
    )


def _survey_interactions(
    interactions: ray.data.Dataset, item_ids: ray.ObjectRef, labelling: Labelling, features: FeatureSettings | None
) -> _Survey:
    pending = [_survey_block.remote(ref, item_ids, labelling, features) for ref in interactions.to_arrow_refs()]
    survey = _Survey()
    while pending:
        done, pending = ray.wait(pending, num_returns=1)
        survey.merge(ray.get(done[0]))
    return survey


@ray.remote(num_cpus=1)
def _survey_block(
    block: pa.Table, item_ids: pa.Array, labelling: Labelling, features: FeatureSettings | None
) -> _Survey:
    if block.num_rows == 0:
        return _Survey()
    require_columns(block, INTERACTIONS, what="the interactions")
    events = label_events(block, item_ids, labelling)
    survey = _Survey(facts=Counter(events.facts), value_maximum=events.value_maximum)
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


def _survey_items(
    items: ray.data.Dataset, features: FeatureSettings | None, times: SplitTimes
) -> tuple[pa.Array, FeatureStatistics, DataProfile]:
    """Return all item ids, sorted, the statistics of features as of the test cut-off, and the profile as of now."""
    pending = [_survey_item_block.remote(ref, features, times) for ref in items.to_arrow_refs()]
    ids, statistics, profile = [], FeatureStatistics(), DataProfile()
    while pending:
        done, pending = ray.wait(pending, num_returns=1)
        block_ids, block_statistics, block_profile = ray.get(done[0])
        ids.append(block_ids)
        statistics = statistics.merge(block_statistics)
        profile.merge(block_profile)
    distinct = pc.unique(pa.chunked_array(ids, pa.string()))
    return distinct.take(pc.sort_indices(distinct)), statistics, profile


@ray.remote(num_cpus=1)
def _survey_item_block(
    block: pa.Table, features: FeatureSettings | None, times: SplitTimes
) -> tuple[pa.Array, FeatureStatistics, DataProfile]:
    if block.num_rows == 0:
        return pa.array([], pa.string()), FeatureStatistics(), DataProfile()
    ids = pc.unique(block[ITEM_ID])
    if features is None:
        return ids, FeatureStatistics(), DataProfile()
    then = block.filter(pc.equal(block[AS_OF], pa.scalar(times.test_start, TIMESTAMP)))
    statistics = collect_statistics(then.filter(pc.less_equal(then[FIRST_SEEN], then[AS_OF])), features.item)
    return ids, statistics, profile_items(_rows_as_of(block, times.as_of, times.test_start, first=False), features.item)


def _rows_as_of(block: pa.Table, instant: datetime, other: datetime, *, first: bool) -> pa.Table:
    """Return the rows of one instant; if both instants are equal, the first or the second half of the rows."""
    if instant == other:
        half = block.num_rows // 2
        return block.slice(0, half) if first else block.slice(half)
    return block.filter(pc.equal(block[AS_OF], pa.scalar(instant, TIMESTAMP)))


def _encode_block(block: pa.Table, item_ids: Any, fitted: Any, labelling: Labelling, raw: pa.Schema) -> pa.Table:
    """Encode the users of a block and append the raw fields, as of now and as of the test cut-off."""
    if block.num_rows == 0:
        return _with_raw(_with_raw(TIMELINES.empty_table(), RAW_NOW, raw, block, []), RAW_TEST, raw, block, [])
    events = label_events(block, _get(item_ids), labelling)
    table = encode_timelines(events, _get(fitted))
    table = _with_raw(table, RAW_NOW, raw, events.rows, events.query[:, 2])
    return _with_raw(table, RAW_TEST, raw, events.rows, events.query[:, 1])


def _with_raw(encoded: pa.Table, beginning: str, raw: pa.Schema, rows: pa.Table, places: Any) -> pa.Table:
    """Append the raw fields of the rows at some indices, one for each encoded row."""
    for column in raw:
        values = rows[column.name].take(pa.array(places, pa.int64())) if encoded.num_rows else pa.array([], column.type)
        encoded = encoded.append_column(f"{beginning}{column.name}", pc.cast(values, column.type))
    return encoded


def _of_items(block: pa.Table, item_ids: ray.ObjectRef) -> pa.Table:
    return block.filter(pc.is_in(block[ITEM_ID], value_set=get_shared(item_ids))) if block.num_rows else block


def _encode_items(
    block: pa.Table, item_ids: Any, fitted: Any, counts: Any, instant: Any, other: Any, first: bool, raw: pa.Schema
) -> pa.Table:
    """Encode the rows of one instant; see `_rows_as_of`."""
    if block.num_rows == 0:
        return _with_raw(CATALOGUE.empty_table(), RAW_ITEM, raw, block, [])
    preprocessor: Preprocessor = _get(fitted)
    positives, before_test = _get(counts)
    rows = _rows_as_of(block, instant, other, first=first)
    ids = rows[ITEM_ID].combine_chunks() if isinstance(rows[ITEM_ID], pa.ChunkedArray) else rows[ITEM_ID]
    index = index_of(ids, _get(item_ids)) + 1
    if (index == 0).any():
        raise DataError("the catalogue changed during encoding; run it again")
    names = ids.to_pylist()
    known = pc.less_equal(rows[FIRST_SEEN], rows[AS_OF]).to_numpy(zero_copy_only=False)
    known = known | np.array([name in before_test for name in names], bool)
    count = np.array([positives.get(name, 0) for name in names], np.int64)
    id_index = preprocessor.encode_item_ids(ids)
    encoded = catalogue_rows(index, ids, id_index, known, count, preprocessor.items.encode(rows))
    return _with_raw(encoded, RAW_ITEM, raw, rows, np.arange(rows.num_rows))


def _get(value: Any) -> Any:
    return get_shared(value) if isinstance(value, ray.ObjectRef) else value
