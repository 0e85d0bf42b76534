"""Creates `TrainingData` from `FeatureTables`: surveys the events, fits the preprocessor, and writes encoded Parquet.

Input: blocks with all rows of their users. Output under the prefix of the run: encoded timelines and two encoded
catalogues (as of the test cut-off, and as of now), with the raw fields that filters read. The preprocessor is fitted on
training events only, and no process holds a table of all events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from rec_ray.config import FeatureSettings
from rec_ray.contracts import FeatureTables, TrainingData
from rec_ray.data.block_survey import (
    BlockSurvey,
    encode_items,
    encode_users,
    fit_preprocessor,
    profile_catalogue,
    require_positives,
    survey_block,
    survey_items,
)
from rec_ray.data.event_notes import log_events
from rec_ray.data.late_features import describe_ids, drop_late_features
from rec_ray.data.read_timelines import summarise_events
from rec_ray.data.user_events import events_per_user
from rec_ray.distributed.parquet_source import ROW_GROUP
from rec_ray.distributed.worker_cache import get_shared
from rec_ray.logs import LOGGER
from rec_ray.retrieval.features.encoding import Labelling
from rec_ray.retrieval.features.preprocessing import FeatureStatistics, Preprocessor
from rec_ray.retrieval.profiles.data_profile import PROFILE, DataProfile
from rec_ray.schema import ITEM_ID, SplitTimes
from rec_ray.storage.object_store import Storage

TIMELINES_FOLDER, CATALOGUE_FOLDER, CATALOGUE_NOW_FOLDER = "timelines", "catalogue", "catalogue_now"
READ_FOLDER = "read_timelines"


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
    require_positives(survey, features, tables.split_times, *unmatched)
    features, late = drop_late_features(features, survey.coverage, items, survey.items_before_test, tables.notes)
    for said in (*unmatched, *late):
        LOGGER.warning("%s", said)
    preprocessor = fit_preprocessor(survey, item_statistics, features, refit=refit)
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
    survey: BlockSurvey,
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
) -> BlockSurvey:
    pending = [_survey_task.remote(ref, item_ids, labelling, features) for ref in interactions.to_arrow_refs()]
    survey = BlockSurvey()
    while pending:
        done, pending = ray.wait(pending, num_returns=1)
        survey.merge(ray.get(done[0]))
    return survey


def _survey_items(
    items: ray.data.Dataset, features: FeatureSettings | None, times: SplitTimes
) -> tuple[pa.Array, FeatureStatistics, DataProfile]:
    """Return all item ids, sorted, the statistics of features as of the test cut-off, and the profile as of now."""
    pending = [_survey_items_task.remote(ref, features, times) for ref in items.to_arrow_refs()]
    ids, statistics, profile = [], FeatureStatistics(), DataProfile()
    while pending:
        done, pending = ray.wait(pending, num_returns=1)
        block_ids, block_statistics, block_profile = ray.get(done[0])
        ids.append(block_ids)
        statistics = statistics.merge(block_statistics)
        profile.merge(block_profile)
    distinct = pc.unique(pa.chunked_array(ids, pa.string()))
    return distinct.take(pc.sort_indices(distinct)), statistics, profile


def _of_items(block: pa.Table, item_ids: ray.ObjectRef) -> pa.Table:
    return block.filter(pc.is_in(block[ITEM_ID], value_set=get_shared(item_ids))) if block.num_rows else block


@ray.remote(num_cpus=1)
def _survey_task(
    block: pa.Table, item_ids: pa.Array, labelling: Labelling, features: FeatureSettings | None
) -> BlockSurvey:
    return survey_block(block, item_ids, labelling, features)


@ray.remote(num_cpus=1)
def _survey_items_task(
    block: pa.Table, features: FeatureSettings | None, times: SplitTimes
) -> tuple[pa.Array, FeatureStatistics, DataProfile]:
    return *survey_items(block, features, times), profile_catalogue(block, features, times)


def _encode_block(block: pa.Table, item_ids: Any, fitted: Any, labelling: Labelling, raw: pa.Schema) -> pa.Table:
    return encode_users(block, _get(item_ids), _get(fitted), labelling, raw)


def _encode_items(block: pa.Table, item_ids: Any, fitted: Any, counts: Any, **arguments: Any) -> pa.Table:
    return encode_items(block, _get(item_ids), _get(fitted), _get(counts), **arguments)


def _get(value: Any) -> Any:
    return get_shared(value) if isinstance(value, ray.ObjectRef) else value
