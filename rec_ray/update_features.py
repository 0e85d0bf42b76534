"""Stored candidates into Feast: item vectors, then user vectors, then recommendations, through push sources.

The Parquet parts that a manifest lists stream through Ray tasks that push them in small batches, side by side where the
online store can take it; every row is counted and a sample is read back. It knows nothing of models or of how the
candidates were made, and pushes only fields that the view behind a push source has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from feast import FeatureStore, FeatureView, RepoConfig
from feast.data_source import PushMode
from feast.types import from_feast_to_pyarrow_type
from ray.data import TaskPoolStrategy

from rec_ray.config import PublishSettings
from rec_ray.contracts import UpdateReport
from rec_ray.errors import ConfigError, FeatureStoreError, PartlyPublishedError, SchemaError, listed
from rec_ray.feast_store import portable_config, store_in_task
from rec_ray.logs import LOGGER
from rec_ray.schema import EMBEDDING, ITEM_ID, ITEM_IDS, MODEL_VERSION, SCORES, USER_ID
from rec_ray.storage import Storage

SINGLE_WRITERS = ("sqlite", "faiss")
"""Online stores that one process at a time may write."""
SAMPLE = 20
FIELD_NAMES: Mapping[str, Sequence[str]] = {
    EMBEDDING: (EMBEDDING,),
    ITEM_IDS: ("top_k_item_ids", ITEM_IDS),
    SCORES: ("top_k_scores", SCORES),
    MODEL_VERSION: (MODEL_VERSION,),
}
"""What a candidate column may be called in a feature view, the usual name first."""
REQUIRED = (EMBEDDING, ITEM_IDS)


@dataclass(frozen=True)
class PushTarget:
    """A push source with the view behind it.

    fields: our column -> the view's field. key: the view's join key; entity: our column with its values.
    types: the type that the view has the key and each field as. times: columns that take the time of the push.
    """

    source: str
    view: str
    entity: str
    key: str
    fields: Mapping[str, str]
    types: Mapping[str, pa.DataType]
    times: Sequence[str]


def find_push_target(store: FeatureStore, source: str, entity: str, columns: Sequence[str]) -> PushTarget:
    """Find the view that a push source feeds and which of our columns it has.

    Raises:
        ConfigError: there is no such push source, or no view is fed by it.
        SchemaError: the view lacks a field that is needed, or has one that candidates have nothing for.
    """
    views = [view for view in store.list_feature_views() if _push_source_of(view) == source]
    if not views:
        known = sorted({name for view in store.list_feature_views() if (name := _push_source_of(view))})
        raise ConfigError(
            f"no feature view of project {store.project!r} is fed by a push source {source!r}; push sources are "
            f"{listed(known)}. Correct section `publish` or run `feast apply`"
        )
    view = views[0]
    have = [field.name for field in view.features]
    fields: dict[str, str] = {}
    for column in [*columns, MODEL_VERSION]:
        name = next((name for name in FIELD_NAMES[column] if name in have), None)
        if name is not None:
            fields[column] = name
        elif column in REQUIRED:
            raise SchemaError(
                f"feature view {view.name!r} has no field {FIELD_NAMES[column][0]!r}; it has {listed(have)}"
            )
        else:
            LOGGER.info("feature view %s has no field %s: not pushed", view.name, FIELD_NAMES[column][0])
    further = sorted(set(have) - set(fields.values()))
    if further:
        raise SchemaError(
            f"feature view {view.name!r} has the fields {listed(further)}, which candidates do not have; Feast pushes "
            "whole rows only, so move them to another view"
        )
    if len(view.join_keys) != 1:
        raise SchemaError(f"feature view {view.name!r} has the join keys {listed(view.join_keys)}; expected one")
    key = view.join_keys[0]
    kinds = {field.name: from_feast_to_pyarrow_type(field.dtype) for field in [*view.features, *view.entity_columns]}
    types = {name: kinds[name] for name in (key, *fields.values()) if name in kinds}
    batch = view.batch_source
    times = [batch.timestamp_field, batch.created_timestamp_column] if batch else []
    return PushTarget(source, view.name, entity, key, fields, types, [name for name in times if name])


def _push_source_of(view: FeatureView) -> str | None:
    source = getattr(view, "stream_source", None)
    return source.name if source is not None else None


def update_feature_store(
    store: FeatureStore,
    storage: Storage,
    prefix: str,
    manifest: Mapping[str, Any],
    settings: PublishSettings,
    *,
    published_at: datetime,
) -> UpdateReport:
    """Push the candidates below `prefix`: order items, users, recommendations.

    manifest: as `candidates.read_manifest` returns it.

    Raises:
        PartlyPublishedError: a push failed, fewer rows arrived than were sent, or a sample reads back differently.
        ConfigError, SchemaError: a push source or its view does not fit; nothing was pushed then.
    """
    version = str(manifest["version"])
    plan = [
        ("item_embeddings", find_push_target(store, settings.item_push_source, ITEM_ID, [EMBEDDING])),
        ("user_embeddings", find_push_target(store, settings.user_push_source, USER_ID, [EMBEDDING])),
        ("recommendations", find_push_target(store, settings.recommendation_push_source, USER_ID, [ITEM_IDS, SCORES])),
    ]
    _require_ids(plan, manifest)
    kind = str(store.config.online_store.type)
    writers = 1 if kind in SINGLE_WRITERS else max(1, int(ray.cluster_resources().get("CPU", 1)))
    rows: dict[str, int] = {}
    for folder, target in plan:
        parts = manifest["parts"][folder]
        paths = [storage.path(prefix, folder, part["name"]) for part in parts]
        expected = sum(part["rows"] for part in parts)
        pushed, failures = _push(store, storage, paths, target, settings.batch_rows, writers, version, published_at)
        rows[target.source] = pushed
        if failures or pushed != expected:
            why = failures[0] if failures else "the counts differ"
            raise PartlyPublishedError(
                f"{pushed:,} of {expected:,} rows reached {target.source!r}: {why}. The live version is unchanged; run "
                f"`rec-ray publish {version}` again"
            )
        _read_back(store, storage, paths, target, version)
    return UpdateReport(version, rows)


def _require_ids(plan: Sequence[tuple[str, PushTarget]], manifest: Mapping[str, Any]) -> None:
    for folder, _ in plan:
        if folder not in manifest["parts"]:
            raise SchemaError(f"the manifest of the candidates lists no {folder!r}")


def _push(
    store: FeatureStore,
    storage: Storage,
    paths: list[str],
    target: PushTarget,
    batch_rows: int,
    writers: int,
    version: str,
    published_at: datetime,
) -> tuple[int, list[str]]:
    """Push all rows and return how many arrived and what failed.

    A store for one writer is written by this process, which has Feast open already.
    """
    if not paths:
        return 0, []
    if writers == 1:
        answers = [
            _push_batch(store, batch, target, version, published_at)
            for path in paths
            for batch in _batches(storage, path, batch_rows)
        ]
    else:
        answers = (
            ray.data.read_parquet(
                paths, filesystem=storage.filesystem, override_num_blocks=min(len(paths), 4 * writers)
            )
            .map_batches(
                _push_in_task,
                batch_size=batch_rows,
                batch_format="pyarrow",
                fn_kwargs={
                    "config": portable_config(store),
                    "target": target,
                    "version": version,
                    "published_at": published_at,
                },
                compute=TaskPoolStrategy(size=writers),
            )
            .take_all()
        )
    return sum(answer["pushed"] for answer in answers), [a["failure"] for a in answers if a["failure"]]


def _batches(storage: Storage, path: str, rows: int) -> Iterator[pa.Table]:
    with storage.filesystem.open_input_file(path) as handle:
        for batch in pq.ParquetFile(handle).iter_batches(batch_size=rows):
            yield pa.Table.from_batches([batch])


def _push_batch(
    store: FeatureStore, batch: pa.Table, target: PushTarget, version: str, published_at: datetime
) -> dict[str, Any]:
    """Push one batch; a failure is an answer too, so that the others still go through and are counted."""
    try:
        store.push(target.source, push_frame(batch, target, version, published_at), to=PushMode.ONLINE)
    except Exception as error:
        return {"pushed": 0, "failure": f"{type(error).__name__}: {error}"[:500]}
    return {"pushed": batch.num_rows, "failure": ""}


def _push_in_task(
    batch: pa.Table, config: RepoConfig, target: PushTarget, version: str, published_at: datetime
) -> pa.Table:
    return pa.Table.from_pylist([_push_batch(store_in_task(config), batch, target, version, published_at)])


def push_frame(batch: pa.Table, target: PushTarget, version: str, published_at: datetime) -> pd.DataFrame:
    """Return a batch of candidates as the frame that Feast pushes.

    Raises:
        SchemaError: the view has a whole number as key or as item ids, and an id is none.
    """
    columns = {target.key: batch[target.entity]}
    for column, field in target.fields.items():
        columns[field] = pa.array([version] * batch.num_rows) if column == MODEL_VERSION else batch[column]
    frame = pd.DataFrame({name: _as_type_of(target, name, values).to_pandas() for name, values in columns.items()})
    for name in target.times:
        frame[name] = pd.Timestamp(published_at)
    return frame


def _as_type_of(target: PushTarget, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return values with the type that the view has a column as."""
    kind = target.types.get(name, values.type)
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"feature view {target.view!r} has {name!r} as {kind}, which does not hold what candidates have: {error}"
        ) from None


def _read_back(store: FeatureStore, storage: Storage, paths: list[str], target: PushTarget, version: str) -> None:
    """Compare a sample of what was pushed with what the online store answers."""
    if not paths:
        return
    with storage.filesystem.open_input_file(paths[-1]) as handle:
        sample = next(pq.ParquetFile(handle).iter_batches(batch_size=SAMPLE))
    column = next(column for column in target.fields if column != MODEL_VERSION)
    found = read_online(store, target, sample[target.entity].to_pylist())
    pushed = _as_type_of(target, target.fields[column], sample[column]).to_pylist()
    for expected, answer in zip(pushed, found[target.fields[column]], strict=True):
        same = answer is not None and len(answer) == len(expected)
        if same and column == ITEM_IDS:
            same = list(answer) == expected
        elif same:
            same = np.allclose(answer, expected, rtol=1e-5, atol=1e-6)
        if not same:
            raise PartlyPublishedError(
                f"view {target.view!r} answers otherwise than was pushed for version {version}; is another publisher "
                "writing to the same online store? Run `rec-ray publish` again"
            )


def read_online(store: FeatureStore, target: PushTarget, ids: Sequence[str]) -> dict[str, list[Any]]:
    """Read a view's fields of some entities from the online store; an unknown one has null everywhere.

    Raises:
        FeatureStoreError: the online store does not answer.
        SchemaError: the view has a whole number as key, and an id is none.
    """
    features = [f"{target.view}:{field}" for field in target.fields.values()]
    keys = [{target.key: key} for key in _as_type_of(target, target.key, pa.array(ids, pa.string())).to_pylist()]
    try:
        answer: dict[str, list[Any]] = store.get_online_features(features=features, entity_rows=keys).to_dict()
    except Exception as error:
        raise FeatureStoreError(f"the online store did not answer for view {target.view!r}: {error}") from error
    return answer
