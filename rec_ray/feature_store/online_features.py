"""Features of items and users in the online store: materialised through Feast, counted, compared with their source.

Input: a store, section `feast` and ids. Output: the views that readers ask for online, the number of ids with a row,
and the number of ids whose online values differ from those of the offline store. Views that a push source feeds are
left out, because their rows come from pushes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.candidate_store.erasure import Erased, hash_id
from rec_ray.config import FeastSettings
from rec_ray.errors import ConfigError, FeatureStoreError, SchemaError, list_names
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.definitions import Side, SideName, arrow_type, find_side
from rec_ray.feature_store.offline_source import FeatureSource, read_slice, slice_source
from rec_ray.feature_store.online_deletion import delete_online_rows
from rec_ray.feature_store.online_values import is_same
from rec_ray.feature_store.point_in_time import in_repo, point_in_time, portable_config
from rec_ray.feature_store.registry import first_line, read_registry
from rec_ray.schema import ITEM_ID, USER_ID

FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""Start of the first materialisation of a view without TTL; Feast's own start, a year ago, would omit older rows."""
WRITE_ROWS = 10_000
"""Rows per write to the online store. Without a limit Feast (0.67) writes only the first chunk of a table."""
READ_ROWS = 1_000
"""Ids per read of the online store."""


@dataclass(frozen=True)
class OnlineView:
    """A view of users or items that the online store serves. view: its definition; side: the views of the entity."""

    view: Any
    side: Side
    fields: tuple[str, ...]
    alias: str

    @property
    def name(self) -> str:
        """Name of the view."""
        return str(self.view.name)


@dataclass(frozen=True)
class OnlineState:
    """Rows of a view in the online store. ids: looked up. there: with a row. differing: unlike the offline store."""

    ids: int
    there: int
    differing: int


def find_online_views(
    store: FeatureStore, feast: FeastSettings, chosen: Sequence[str] | None = None
) -> list[OnlineView]:
    """Return the views of users and items that are served online and have rows of their own.

    chosen: names of views; None: all that qualify.

    Raises:
        ConfigError: a chosen view is missing, not online, fed by a push source, or not one of users or items.
        FeatureStoreError: the registry does not respond.
    """
    registry = read_registry(store)
    found: dict[str, OnlineView] = {}
    sides: tuple[SideName, ...] = ("user", "item")
    for side in (find_side(registry, feast, each) for each in sides):
        for each in side.views:
            if _why_not_online(each.view) is None:
                found[each.view.name] = OnlineView(each.view, side, tuple(each.fields), each.name)
    if chosen is None:
        return list(found.values())
    for name in chosen:
        if name not in found:
            known = registry.views.get(name)
            why = "there is no such view"
            if known is not None:
                why = _why_not_online(known) or "it is not a view of users or items"
            raise ConfigError(
                f"publish.materialize names {name!r}, but {why}; views that qualify are {list_names(found)}"
            )
    return [found[name] for name in dict.fromkeys(chosen)]


def _why_not_online(view: Any) -> str | None:
    """Return the reason why the rows of a view cannot be materialised, None if they can."""
    if getattr(view, "stream_source", None) is not None:
        return f"push source {view.stream_source.name!r} feeds it"
    if not view.online:
        return "its definition has online=False, so Feast does not serve it"
    if not getattr(view, "enabled", True):
        return "it is disabled"
    return None


def materialize_view(store: FeatureStore, view: OnlineView, until: datetime, *, again: bool = False) -> None:
    """Write rows of a view to the online store through Feast: those since its last materialisation.

    again: write all rows. The first materialisation does so, too: rows within the TTL, all rows without a TTL.

    Raises:
        FeatureStoreError: Feast fails; the online store may have some of the rows.
    """
    config = portable_config(store)
    batch_rows = config.materialization_config.online_write_batch_size or WRITE_ROWS
    limited = config.materialization_config.model_copy(update={"online_write_batch_size": batch_rows})
    writer = FeatureStore(config=config.model_copy(update={"materialization_config": limited}))
    ttl = view.view.ttl or timedelta(0)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), in_repo(config):
            warnings.simplefilter("ignore")
            if view.view.most_recent_end_time is not None and not again:
                writer.materialize_incremental(until, feature_views=[view.name])
            else:
                writer.materialize(until - ttl if ttl else FIRST_TIME, until, feature_views=[view.name])
    except Exception as error:
        raise FeatureStoreError(
            f"view {view.name!r} could not be materialised: {first_line(error)}; is the online store up, and may this "
            "program write to the registry?"
        ) from error


def compare_online(store: FeatureStore, view: OnlineView, ids: Sequence[str], now: datetime) -> OnlineState:
    """Compare the online values of some ids with those of the offline store as of now.

    An id without values offline, such as one whose rows are older than the TTL, is not compared.

    Raises:
        FeatureStoreError: a store does not respond.
        SchemaError: the join key is a whole number, and an id is not one.
    """
    if not ids or not view.fields:
        return OnlineState(len(ids), 0, 0)
    online = read_online_fields(store, view, ids)
    there = [any(online[field][row] is not None for field in view.fields) for row in range(len(ids))]
    names = {field: f"{view.alias}__{field}" for field in view.fields}
    moments = pa.array([now] * len(ids), pa.timestamp("us", "UTC"))
    join = view.side.join(names.values())
    found = point_in_time(portable_config(store), join, pa.array(ids, pa.string()), moments)
    offline = {field: found[name].to_pylist() for field, name in names.items()}
    differing = 0
    for row in range(len(ids)):
        expected = {field: values[row] for field, values in offline.items()}
        if any(value is not None for value in expected.values()):
            differing += any(not is_same(value, online[field][row]) for field, value in expected.items())
    return OnlineState(len(ids), sum(there), differing)


def source_ids(store: FeatureStore, view: OnlineView, rows: int) -> Iterator[pa.Array]:
    """Yield the distinct ids of the rows behind a view as strings, a slice of about `rows` rows at a time.

    Raises:
        FeatureStoreError, DataError: the source cannot be read.
    """
    column = ITEM_ID if view.side.side == "item" else USER_ID
    source = FeatureSource.of(
        view.view.batch_source, {column: view.view.join_keys[0]}, what=f"the rows of view {view.name!r}"
    )
    for part in slice_source(store, source, rows):
        yield pc.unique(read_slice(portable_config(store), part)[column]).drop_null()


def delete_forgotten_rows(store: FeatureStore, view: OnlineView, erased: Erased, rows: int) -> int:
    """Delete the online rows of forgotten users or items that a materialisation wrote again; return their number.

    Their owner has not removed them from the source yet.

    Raises:
        FeatureStoreError: the online store does not support deletion, or fails.
    """
    hashes = erased.items if view.side.side == "item" else erased.users
    if not hashes:
        return 0
    forgotten = {
        each
        for ids in source_ids(store, view, rows)
        for each in ids.to_pylist()
        if hash_id(view.side.side, each) in hashes
    }
    if forgotten:
        delete_online_rows(store, view.view.join_keys[0], _as_keys(view, sorted(forgotten)))
    return len(forgotten)


def read_online_fields(store: FeatureStore, view: OnlineView, ids: Sequence[str]) -> dict[str, list[Any]]:
    """Return the fields of a view for some ids from the online store; an id without a row has nulls.

    Raises:
        FeatureStoreError: the online store does not respond.
        SchemaError: the join key is a whole number, and an id is not one.
    """
    key, keys = view.view.join_keys[0], _as_keys(view, ids)
    found: dict[str, list[Any]] = {field: [] for field in view.fields}
    features = [f"{view.name}:{field}" for field in view.fields]
    for start in range(0, len(keys), READ_ROWS):
        rows = {key: keys[start : start + READ_ROWS]}
        try:
            answer = store.get_online_features(features=features, entity_rows=rows).to_dict()
        except Exception as error:
            raise FeatureStoreError(
                f"the online store did not respond for view {view.name!r}: {first_line(error)}"
            ) from error
        for field in view.fields:
            found[field] += answer[field]
    return found


def _as_keys(view: OnlineView, ids: Sequence[str]) -> list[Any]:
    """Return ids with the type of the view's join key.

    Raises:
        SchemaError: the join key is a whole number, and an id is not one.
    """
    key = view.view.join_keys[0]
    kind = next((arrow_type(each) for each in view.view.entity_columns if each.name == key), None) or pa.string()
    try:
        keys: list[Any] = pa.array(ids, pa.string()).cast(kind).to_pylist()
    except pa.ArrowInvalid as error:
        raise SchemaError(f"view {view.name!r} has {key} as {kind}, but an id has another type: {error}") from None
    return keys
