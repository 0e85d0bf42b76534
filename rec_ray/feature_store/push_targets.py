"""Feature view behind a push source, and the conversion of candidates to rows of that view.

Input: a store and the name of a push source. Output: a `PushTarget`, which maps the columns of candidates to the names
and types of the view; with it candidates become frames to push, and online rows are read back for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.candidate_store.erasure import Erased
from rec_ray.config import PublishSettings
from rec_ray.errors import ConfigError, FeatureStoreError, SchemaError, list_names
from rec_ray.feature_store.api import FeatureStore, FeatureView, FileSource, from_feast_to_pyarrow_type
from rec_ray.feature_store.registry import read_registry
from rec_ray.logs import LOGGER
from rec_ray.schema import EMBEDDING, ITEM_IDS, MODEL_VERSION, SCORES, SIMILAR_IDS, SIMILAR_SCORES

FIELD_NAMES: Mapping[str, Sequence[str]] = {
    EMBEDDING: (EMBEDDING,),
    ITEM_IDS: ("top_k_item_ids", ITEM_IDS),
    SCORES: ("top_k_scores", SCORES),
    SIMILAR_IDS: (SIMILAR_IDS,),
    SIMILAR_SCORES: (SIMILAR_SCORES,),
    MODEL_VERSION: (MODEL_VERSION,),
}
"""Names of a candidate column in a feature view, the default first; other columns have the name of their field."""
REQUIRED = (EMBEDDING, ITEM_IDS, SIMILAR_IDS)


@dataclass(frozen=True)
class VectorField:
    """Properties that a view declares for a vector field, None if undeclared."""

    metric: str | None = None
    length: int | None = None


@dataclass(frozen=True)
class PushTarget:
    """A push source and the view that it feeds.

    fields: our column -> the view's field. key: the view's join key; entity: our column with its values.
    types: the view's type of the key and of each field. times: columns that take the time of the push.
    vectors: our columns that contain one vector each -> its declaration in the view.
    offline_is_file: whether the offline store appends to a file.
    keeps_empty_numbers: whether the online store can store an empty list of numbers; pgvector has no empty vector.
    """

    source: str
    view: str
    entity: str
    key: str
    fields: Mapping[str, str]
    types: Mapping[str, pa.DataType]
    times: Sequence[str]
    vectors: Mapping[str, VectorField] = field(default_factory=dict)
    keeps_empty_numbers: bool = True
    offline_is_file: bool = False


@dataclass(frozen=True)
class Push:
    """Properties that all rows of one push source share. folder: of the candidates. sizes: numbers of each vector,
    by our column. erased: forgotten users and items, which are left out.
    """

    target: PushTarget
    version: str
    published_at: datetime
    batch_rows: int
    mode: str
    sizes: Mapping[str, int]
    folder: str
    erased: Erased = field(default_factory=Erased)


def find_push_target(store: FeatureStore, source: str, entity: str, columns: Sequence[str]) -> PushTarget:
    """Find the view that a push source feeds and the columns of ours that it has.

    Raises:
        ConfigError: the push source is missing or feeds no view.
        SchemaError: the view lacks a required field, or has a field that candidates do not have.
    """
    views = [view for view in read_registry(store).views.values() if _push_source_of(view) == source]
    if not views:
        raise ConfigError(
            f"no feature view of project {store.project!r} is fed by a push source {source!r}; push sources are "
            f"{list_names(push_sources(store))}. Correct section `publish` or run `feast apply`"
        )
    view = views[0]
    have = [each.name for each in view.features]
    fields: dict[str, str] = {}
    for column in [*columns, MODEL_VERSION]:
        known = FIELD_NAMES.get(column, (column,))
        name = next((name for name in known if name in have), None)
        if name is not None:
            fields[column] = name
        elif column in REQUIRED or column not in FIELD_NAMES:
            raise SchemaError(f"feature view {view.name!r} has no field {known[0]!r}; it has {list_names(have)}")
        else:
            LOGGER.info("feature view %s has no field %s: not pushed", view.name, known[0])
    further = sorted(set(have) - set(fields.values()))
    if further:
        raise SchemaError(
            f"feature view {view.name!r} has the fields {list_names(further)}, which candidates do not have; "
            "Feast pushes whole rows only, so move them to another view, or, if they are vectors "
            "of a search view, declare them in section `search`"
        )
    if len(view.join_keys) != 1:
        raise SchemaError(f"feature view {view.name!r} has the join keys {list_names(view.join_keys)}; expected one")
    key = view.join_keys[0]
    kinds = {each.name: from_feast_to_pyarrow_type(each.dtype) for each in [*view.features, *view.entity_columns]}
    types = {name: kinds[name] for name in (key, *fields.values()) if name in kinds}
    batch = view.batch_source
    times = [batch.timestamp_field, batch.created_timestamp_column] if batch else []
    declared = {each.name: each for each in view.features}
    vectors = {
        column: VectorField(
            declared[name].vector_search_metric or None,
            declared[name].vector_length or None,
        )
        for column, name in fields.items()
        if column == EMBEDDING or column not in FIELD_NAMES
    }
    online = store.config.online_store
    return PushTarget(
        source,
        view.name,
        entity,
        key,
        fields,
        types,
        [name for name in times if name],
        vectors=vectors,
        keeps_empty_numbers=not getattr(online, "vector_enabled", False),
        offline_is_file=isinstance(batch, FileSource),
    )


METRICS = {
    "cosine": {"cosine"},
    "dot": {"dot", "dot_product", "inner_product", "ip"},
}
"""Similarity of a model -> its metric names in feature views."""


def require_same_space(target: PushTarget, similarity: str, embedding_size: int) -> None:
    """Check that a view declares the similarity and the vector length of the model.

    Raises:
        SchemaError: the view declares another metric or another vector length.
    """
    for vector in target.vectors.values():
        if vector.metric is not None and vector.metric.lower() not in METRICS[similarity]:
            raise SchemaError(
                f"feature view {target.view!r} has the vector metric {vector.metric!r}, but the model compares by "
                f"{similarity!r}: neighbours would be wrong. Set vector_search_metric of the view to {similarity!r} "
                f"and run `feast apply`, or train with model.similarity: {vector.metric}"
            )
        if vector.length is not None and vector.length != embedding_size:
            raise SchemaError(
                f"feature view {target.view!r} takes vectors of {vector.length} numbers, the model makes "
                f"{embedding_size}; set vector_length of the view or model.embedding_size"
            )


def is_published(store: FeatureStore, settings: PublishSettings) -> bool:
    """Return whether candidates are pushed: the repository has one of the push sources, or a setting names another.

    A repository without any of the default push sources is only read.

    Raises:
        ConfigError, FeatureStoreError: as `read_registry`.
    """
    names = ("item_push_source", "user_push_source", "recommendation_push_source")
    there = push_sources(store)
    usual = PublishSettings()
    return any(getattr(settings, name) in there or getattr(settings, name) != getattr(usual, name) for name in names)


def push_sources(store: FeatureStore) -> list[str]:
    """Return the push sources that feed a view."""
    return sorted({name for view in read_registry(store).views.values() if (name := _push_source_of(view))})


def _push_source_of(view: FeatureView) -> str | None:
    source = getattr(view, "stream_source", None)
    return source.name if source is not None else None


def require_offline_types(target: PushTarget) -> None:
    """Check that the offline store accepts the pushed rows.

    Raises:
        SchemaError: it is a file and the view has lists of texts, which Feast (0.67) cannot append to a file.
    """
    texts = pa.list_(pa.string())
    names = [name for name in target.fields.values() if target.types.get(name) == texts]
    if target.offline_is_file and names:
        raise SchemaError(
            f"view {target.view!r} has lists of texts in {list_names(names)}, which Feast cannot append to a file; set "
            "publish.push_mode: online, or give the view a source in a SQL offline store"
        )


def push_frame(batch: pa.Table, target: PushTarget, version: str, published_at: datetime) -> pd.DataFrame:
    """Return a batch of candidates as the frame that Feast pushes.

    Raises:
        SchemaError: the view has whole numbers as key or item ids, and an id is not one.
    """
    columns = {target.key: batch[target.entity]}
    for column, name in target.fields.items():
        columns[name] = pa.array([version] * batch.num_rows) if column == MODEL_VERSION else batch[column]
    return _frame({name: as_type_of(target, name, values) for name, values in columns.items()}, target, published_at)


def tombstone_frame(
    ids: pa.Array, target: PushTarget, version: str, published_at: datetime, sizes: Mapping[str, int]
) -> pd.DataFrame:
    """Return the frame that clears the rows of departed entities: empty lists, no vector.

    ids: [n] strings. sizes: numbers of each vector, by our column. If the row would have no other value, it takes
    vectors of zeros instead of nulls: Feast (0.67) omits rows in which every field is null, and a search by cosine
    never returns zeros.

    Raises:
        SchemaError: the view has a whole number as key, and an id is not one.
    """
    n = len(ids)
    only_vectors = set(target.fields) == set(target.vectors)
    values: dict[str, pa.Array] = {
        ITEM_IDS: pa.array([[]] * n, pa.list_(pa.string())),
        SCORES: pa.array([[]] * n, pa.list_(pa.float32())),
        SIMILAR_IDS: pa.array([[]] * n, pa.list_(pa.string())),
        SIMILAR_SCORES: pa.array([[]] * n, pa.list_(pa.float32())),
        MODEL_VERSION: pa.array([version] * n, pa.string()),
    }
    for column in target.vectors:
        nothing = [0.0] * sizes[column] if only_vectors else None
        values[column] = pa.array([nothing] * n, pa.list_(pa.float64()))
    columns = {target.key: ids} | {name: values[column] for column, name in target.fields.items()}
    return _frame({name: as_type_of(target, name, each) for name, each in columns.items()}, target, published_at)


def _frame(columns: Mapping[str, Any], target: PushTarget, published_at: datetime) -> pd.DataFrame:
    """Return typed columns as a frame, with the times of the push."""
    frame = pd.DataFrame({name: _series(_storable(target, values)) for name, values in columns.items()})
    for name in target.times:
        frame[name] = pd.Timestamp(published_at)
    return frame


def _series(values: Any) -> pd.Series[Any]:
    """Return a column for a frame; an all-null column keeps its type, which Feast could not infer otherwise."""
    if values.null_count < len(values):
        return values.to_pandas()
    return pd.Series(pd.arrays.ArrowExtensionArray(values))


def _storable(target: PushTarget, values: Any) -> Any:
    """Return a column with nulls for empty lists of numbers if the online store cannot store them."""
    kind = values.type
    if target.keeps_empty_numbers or not pa.types.is_list(kind) or pa.types.is_string(kind.value_type):
        return values
    return pc.if_else(pc.greater(pc.list_value_length(values), 0), values, pa.scalar(None, kind))


def as_type_of(target: PushTarget, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return values with the view's type of a column.

    Raises:
        SchemaError: the type cannot represent the values.
    """
    kind = target.types.get(name, values.type)
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"feature view {target.view!r} has {name!r} as {kind}, which cannot represent the candidates: {error}"
        ) from None


def read_online(
    store: FeatureStore, target: PushTarget, ids: Sequence[str], fields: Sequence[str] | None = None
) -> dict[str, list[Any]]:
    """Read fields of a view for some entities from the online store; an unknown entity has only nulls.

    fields: some of the view's; None reads all pushed fields.

    Raises:
        FeatureStoreError: the online store does not respond.
        SchemaError: the view has a whole number as key, and an id is not one.
    """
    features = [f"{target.view}:{name}" for name in fields or target.fields.values()]
    keys = {target.key: as_type_of(target, target.key, pa.array(ids, pa.string())).to_pylist()}
    _skip_version_check(store)
    try:
        answer: dict[str, list[Any]] = store.get_online_features(features=features, entity_rows=keys).to_dict()
    except Exception as error:
        raise FeatureStoreError(f"the online store did not respond for view {target.view!r}: {error}") from error
    return answer


def _skip_version_check(store: FeatureStore) -> None:
    """Mark the online store as checked for reads of a view's version, which this program never requests.

    Before its first read Feast (0.67) otherwise imports every online store that is installed, faiss and PostgreSQL
    included.
    """
    online: Any = store._get_provider().online_store
    if getattr(online, "_versioned_read_supported", True) is None:
        online._versioned_read_supported = True
