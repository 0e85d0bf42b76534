"""Feast inside Ray tasks: what a store declares, one store a process, and a point-in-time join that loses no row.

The configuration of the driver's store comes in (`portable_config`), features of entities as of given times go out, a
row for each row and in the same order. It knows neither which features mean what nor how rows are cut into tasks.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr

from rec_ray.distributed.worker_cache import get_or_create
from rec_ray.errors import ConfigError, FeatureStoreError, SchemaError, listed
from rec_ray.feature_store.api import FeatureService, FeatureStore, FeatureView, RepoConfig, from_feast_to_pyarrow_type
from rec_ray.schema import EVENT_TIMESTAMP

_ROW = "rec_ray_row"
_SECRET_NAME = re.compile(r"password|passwd|secret|token|access_key|api_key", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(r"://[^:/@\s]*:([^@\s]+)@|(?:password|passwd|pwd)=([^,;&\s]+)", re.IGNORECASE)
"""Names of settings that are secrets, and what stands for a password in an address or a Redis connection string."""


def find_service(store: FeatureStore, name: str) -> FeatureService:
    """Return a feature service.

    Raises:
        ConfigError: there is none of that name.
        FeatureStoreError: the registry cannot be read.
    """
    try:
        services = {service.name: service for service in store.list_feature_services()}
    except Exception as error:
        raise FeatureStoreError(
            f"the Feast registry of project {store.project!r} cannot be read: {error}; was `feast apply` run?"
        ) from error
    if name not in services:
        raise ConfigError(
            f"there is no feature service {name!r} in Feast project {store.project!r}; it has {listed(services)}. "
            "Set the name in section `feast` or run `feast apply`"
        )
    return services[name]


def require_fields(service: FeatureService, wanted: Iterable[str], key: str, taken: Sequence[str]) -> None:
    """Check that a service has the wanted fields and that none is called like one of the columns `taken`.

    Raises:
        SchemaError: names the fields.
    """
    wanted = set(wanted)
    have = [feature.name for projection in service.feature_view_projections for feature in projection.features]
    missing = sorted(wanted - set(have))
    if missing:
        raise SchemaError(
            f"feature service {service.name!r} has no field {listed(missing)}; it returns {listed([key, *have], 30)}. "
            "Was `feast apply` run?"
        )
    clashing = sorted(wanted & set(taken))
    if clashing:
        raise SchemaError(
            f"feature {listed(clashing)} of service {service.name!r} has a name that rec_ray uses itself; rename it in "
            "the feature view (field_mapping of its source) or leave it undeclared"
        )


def raw_fields(service: FeatureService, wanted: Mapping[str, str], taken: Sequence[str]) -> pa.Schema:
    """Return the wanted fields of a service with their types.

    wanted: field -> the setting that names it. taken: columns that no field may be called like.

    Raises:
        ConfigError: the service has no such field, or it has the name of another column.
    """
    features = [feature for projection in service.feature_view_projections for feature in projection.features]
    kinds = {feature.name: from_feast_to_pyarrow_type(feature.dtype) for feature in features}
    for name, setting in wanted.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {listed(kinds, 30)}"
            raise ConfigError(f"{setting} names the field {name!r}, which service {service.name!r} has not; {hint}")
        if name in taken:
            raise ConfigError(f"{setting}: rec_ray uses the name {name!r} itself; rename the field in its feature view")
    return pa.schema([(name, kinds[name]) for name in wanted])


def views_of(store: FeatureStore, service: FeatureService) -> list[FeatureView]:
    """Return the views of a service that have rows of their own; on-demand views compute theirs.

    Raises:
        FeatureStoreError: the service reads a view that is not registered.
    """
    views = {view.name: view for view in store.list_all_feature_views()}
    names = [projection.name for projection in service.feature_view_projections]
    missing = [name for name in names if name not in views]
    if missing:
        raise FeatureStoreError(
            f"feature service {service.name!r} reads the views {listed(missing)}, which are not in the registry of "
            f"project {store.project!r}; run `feast apply`"
        )
    return [views[name] for name in names if getattr(views[name], "batch_source", None) is not None]


def portable_config(store: FeatureStore) -> RepoConfig:
    """Return the store's configuration so that it means the same in a process that works in another folder.

    Feast resolves a relative registry file against the working folder when it is given a configuration (0.67).
    """
    repo = Path(store.repo_path).resolve()
    config = store.config.model_copy(update={"repo_path": repo})
    registry = config.registry
    path = getattr(registry, "path", None)
    if registry.registry_type == "file" and path and "://" not in path and not Path(path).is_absolute():
        config.registry_config = registry.model_copy(update={"path": str(repo / path)})
        config._registry = None
    return config


def secrets_in(config: RepoConfig) -> list[str]:
    """Return the passwords, keys and tokens that a feature_store.yaml holds, so that they are never shown."""
    found: list[str] = []

    def look(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                look(str(key), entry)
        elif isinstance(value, SecretStr):
            found.append(value.get_secret_value())
        elif isinstance(value, str) and _SECRET_NAME.search(name):
            found.append(value)
        elif isinstance(value, str):
            found.extend(text for match in _SECRET_IN_TEXT.finditer(value) for text in match.groups() if text)

    for part in (config.registry, config.offline_store, config.online_store):
        look("", part.model_dump() if hasattr(part, "model_dump") else part)
    return found


@contextlib.contextmanager
def in_repo(config: RepoConfig) -> Iterator[None]:
    """Work in the folder of the repository, where it is on this machine.

    Feast's DuckDB store resolves the relative path of a file source against the working folder (0.67).
    """
    folder = config.repo_path
    with contextlib.chdir(folder) if folder and Path(folder).is_dir() else contextlib.nullcontext():
        yield


def store_in_task(config: RepoConfig) -> FeatureStore:
    """Return this process's store; it is opened once, as that costs seconds."""
    return get_or_create(f"feast {config.project} {config.repo_path}", lambda: FeatureStore(config=config))


def point_in_time(
    config: RepoConfig, service: str, key: str, ids: pa.Array, times: pa.Array, fields: Sequence[str]
) -> pa.Table:
    """Return `fields` of entities as of given times: a row for each row, in the same order.

    ids: [n] strings of the join key `key`, n at least 1; times: [n] UTC.

    Raises:
        FeatureStoreError: the offline store fails, or does not return each row exactly once.
        SchemaError: the service does not return a field, or has whole numbers as ids where `ids` are none.
    """
    store = store_in_task(config)
    features = store.get_feature_service(service)
    ids = _as_key(ids, store, features, key)
    entity = pa.table({key: ids, EVENT_TIMESTAMP: times, _ROW: np.arange(len(ids))}).to_pandas()
    try:
        with in_repo(config):
            joined = store.get_historical_features(entity_df=entity, features=features).to_arrow()
    except Exception as error:
        raise FeatureStoreError(
            f"feature service {service!r} could not be joined for {len(entity):,} rows: {type(error).__name__}: {error}"
        ) from error
    missing = [field for field in [_ROW, *fields] if field not in joined.column_names]
    if missing:
        have = listed(joined.column_names, 30)
        raise SchemaError(f"feature service {service!r} returned no {listed(missing)}; it returned {have}")
    rows = joined[_ROW].to_numpy()
    if len(rows) != len(entity) or not np.array_equal(np.sort(rows), np.arange(len(entity))):
        raise FeatureStoreError(
            f"the offline store returned {len(rows):,} rows for {len(entity):,} of service {service!r}: it drops or "
            "repeats rows that share an entity and a time (Feast's default Dask store does). Use `type: duckdb`"
        )
    return joined.select(list(fields)).take(pa.array(np.argsort(rows)))


def read_items(
    store: FeatureStore, service: str, key: str, item_ids: Sequence[str], fields: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return fields of a few items as of now: field -> item id -> value.

    Raises:
        FeatureStoreError: the offline store fails.
        SchemaError: the service does not return a field.
    """
    now = pa.array([datetime.now(UTC)] * len(item_ids), pa.timestamp("us", "UTC"))
    found = point_in_time(portable_config(store), service, key, pa.array(item_ids, pa.string()), now, fields)
    return {field: dict(zip(item_ids, found[field].to_pylist(), strict=True)) for field in fields}


def _as_key(ids: pa.Array, store: FeatureStore, service: FeatureService, key: str) -> pa.Array:
    """Return the ids with the type that the views know them by: an offline store does not join text to numbers."""
    kinds = {field.dtype for view in views_of(store, service) for field in view.entity_columns if field.name == key}
    if len(kinds) != 1:
        return ids
    kind = from_feast_to_pyarrow_type(kinds.pop())
    if not pa.types.is_integer(kind):
        return ids
    try:
        return pc.cast(ids, kind)
    except pa.ArrowInvalid as error:
        raise SchemaError(
            f"feature service {service.name!r} has {key} as {kind}, but it is asked for others: {error}"
        ) from None
