"""The feature view behind a push source, and candidates as the rows that it takes.

A store and the name of a push source come in; a `PushTarget` goes out, which says under what names and types the view
has the columns of candidates, and turns them into frames to push and answers to compare. It does not know how rows are
read, spread or counted.
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
"""Names of a candidate column in a feature view, the usual one first; other columns have the name of their field."""
REQUIRED = (EMBEDDING, ITEM_IDS, SIMILAR_IDS)


@dataclass(frozen=True)
class VectorField:
    """Declared properties of a vector field of a view, None if undeclared."""

    metric: str | None = None
    length: int | None = None


@dataclass(frozen=True)
class PushTarget:
    """A push source with the view behind it.

    fields: our column -> the view's field. key: the view's join key; entity: our column with its values.
    types: the type that the view has the key and each field as. times: columns that take the time of the push.
    vectors: our columns that hold one vector each -> what the view says of it.
    offline_is_file: whether what goes to the offline store is appended to a file.
    keeps_empty_numbers: whether the online store holds an empty list of numbers; pgvector knows no empty vector.
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
    """Properties that all rows of one push source share. folder: that of the candidates. sizes: numbers of each vector,
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
    """Find the view that a push source feeds and which of our columns it has.

    Raises:
        ConfigError: there is no such push source, or no view is fed by it.
        SchemaError: the view lacks a field that is needed, or has one that candidates have nothing for.
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
            "Feast pushes whole rows only, so move them to another view, or, where they are vectors "
            "of a view that is searched, declare them in section `search`"
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
"""Similarity of a model -> what a feature view may call it."""


def require_same_space(target: PushTarget, similarity: str, embedding_size: int) -> None:
    """Check that a view searches its vectors as the model compares them.

    Raises:
        SchemaError: the view names another metric, or another length of its vectors.
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

    A repository without any of the usual ones is read and not written.

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
    """Check that the offline store takes what is pushed.

    Raises:
        SchemaError: it is a file and the view has lists of texts, which Feast (0.67) appends to no file.
    """
    texts = pa.list_(pa.string())
    names = [name for name in target.fields.values() if target.types.get(name) == texts]
    if target.offline_is_file and names:
        raise SchemaError(
            f"view {target.view!r} has lists of texts in {list_names(names)}, which Feast appends to no file; set "
            "publish.push_mode: online, or give the view a source in a SQL offline store"
        )


def push_frame(batch: pa.Table, target: PushTarget, version: str, published_at: datetime) -> pd.DataFrame:
    """Return a batch of candidates as the frame that Feast pushes.

    Raises:
        SchemaError: the view has a whole number as key or as item ids, and an id is none.
    """
    columns = {target.key: batch[target.entity]}
    for column, name in target.fields.items():
        columns[name] = pa.array([version] * batch.num_rows) if column == MODEL_VERSION else batch[column]
    return _frame({name: as_type_of(target, name, values) for name, values in columns.items()}, target, published_at)


def tombstone_frame(
    ids: pa.Array, target: PushTarget, version: str, published_at: datetime, sizes: Mapping[str, int]
) -> pd.DataFrame:
    """Return the frame that says of entities that they are no more: empty lists, no vector.

    ids: [n] strings. sizes: numbers of each vector, by our column. Where nothing else would be in the row, vectors of
    zeros stand for none: Feast leaves rows out in which every field is null (0.67), and no search by cosine finds
    zeros.

    Raises:
        SchemaError: the view has a whole number as key, and an id is none.
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
    """Return a column for a frame; one that is null throughout keeps its type, which Feast would not know otherwise."""
    if values.null_count < len(values):
        return values.to_pandas()
    return pd.Series(pd.arrays.ArrowExtensionArray(values))


def _storable(target: PushTarget, values: Any) -> Any:
    """Return a column with null for empty lists of numbers where the online store cannot hold them."""
    kind = values.type
    if target.keeps_empty_numbers or not pa.types.is_list(kind) or pa.types.is_string(kind.value_type):
        return values
    return pc.if_else(pc.greater(pc.list_value_length(values), 0), values, pa.scalar(None, kind))


def as_type_of(target: PushTarget, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return values with the type that the view has a column as.

    Raises:
        SchemaError: it does not hold them.
    """
    kind = target.types.get(name, values.type)
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"feature view {target.view!r} has {name!r} as {kind}, which does not hold what candidates have: {error}"
        ) from None


def read_online(
    store: FeatureStore, target: PushTarget, ids: Sequence[str], fields: Sequence[str] | None = None
) -> dict[str, list[Any]]:
    """Read a view's fields of some entities from the online store; an unknown one has null everywhere.

    fields: some of the view's, all that are pushed when None.

    Raises:
        FeatureStoreError: the online store does not answer.
        SchemaError: the view has a whole number as key, and an id is none.
    """
    features = [f"{target.view}:{name}" for name in fields or target.fields.values()]
    keys = {target.key: as_type_of(target, target.key, pa.array(ids, pa.string())).to_pylist()}
    try:
        answer: dict[str, list[Any]] = store.get_online_features(features=features, entity_rows=keys).to_dict()
    except Exception as error:
        raise FeatureStoreError(f"the online store did not answer for view {target.view!r}: {error}") from error
    return answer
