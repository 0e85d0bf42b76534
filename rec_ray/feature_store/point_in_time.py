"""Feast inside Ray tasks: a portable configuration, one store per process, a point-in-time join that loses no row.

Input: the configuration of the driver's store (`portable_config`). Output: features of entities as of given times, one
row per input row in the same order. Callers choose the features and divide rows into tasks.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import SecretStr

from rec_ray.config import FeastSettings
from rec_ray.distributed.worker_cache import get_or_create
from rec_ray.errors import FeatureStoreError, SchemaError, list_names
from rec_ray.feature_store.api import FeatureStore, RepoConfig
from rec_ray.feature_store.definitions import find_side
from rec_ray.feature_store.feature_join import FeatureJoin, JoinedView, as_key, join_files
from rec_ray.feature_store.registry import first_line, read_registry
from rec_ray.feature_store.source_files import as_utc, reads_files
from rec_ray.schema import EVENT_TIMESTAMP

_ROW = "rec_ray_row"
_SECRET_NAME = re.compile(r"password|passwd|secret|token|access_key|api_key", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(r"://[^:/@\s]*:([^@\s]+)@|(?:password|passwd|pwd)=([^,;&\s]+)", re.IGNORECASE)
"""Names of secret settings, and the pattern of a password in an address or a Redis connection string."""
_SQLITE_FILE = re.compile(r"^(?P<driver>sqlite(?:\+\w+)?://)/(?P<file>[^?]+)(?P<rest>.*)$")


def portable_config(store: FeatureStore) -> RepoConfig:
    """Return the store's configuration with absolute paths, for processes with another working folder.

    Feast (0.67) resolves a relative registry file against the working folder if the store opens from a configuration.
    """
    repo = Path(store.repo_path).resolve()
    config = store.config.model_copy(update={"repo_path": repo})
    registry = config.registry
    places = {name: getattr(registry, name, None) for name in ("path", "read_path")}
    absolute = {name: _absolute(path, repo, registry.registry_type) for name, path in places.items() if path}
    if absolute != {name: path for name, path in places.items() if path}:
        config.registry_config = registry.model_copy(update=absolute)
        config._registry = None
    return config


def _absolute(path: str, repo: Path, kind: str) -> str:
    """Return the absolute path of a registry: a file, or a SQLite database."""
    if kind == "file" and "://" not in path and not Path(path).is_absolute():
        return str(repo / path)
    address = _SQLITE_FILE.match(path)
    if kind == "sql" and address and not Path(address["file"]).is_absolute() and address["file"] != ":memory:":
        return f"{address['driver']}/{repo / address['file']}{address['rest']}"
    return path


def secrets_in(config: RepoConfig) -> list[str]:
    """Return the passwords, keys and tokens of a feature_store.yaml, so that logs can mask them."""
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
    """Change the working folder to the repository if it exists on this machine.

    Feast's DuckDB store (0.67) resolves the relative path of a file source against the working folder.
    """
    folder = config.repo_path
    with contextlib.chdir(folder) if folder and Path(folder).is_dir() else contextlib.nullcontext():
        yield


def store_in_task(config: RepoConfig) -> FeatureStore:
    """Return this process's store; it is opened once, because opening takes seconds."""
    return get_or_create(f"feast {config.project} {config.repo_path}", lambda: FeatureStore(config=config))


def point_in_time(config: RepoConfig, join: FeatureJoin, ids: pa.Array, times: pa.Array) -> pa.Table:
    """Return the columns of a join for entities as of given times: one row per input row, in the same order.

    ids: [n] strings, n at least 1; times: [n] UTC.

    Raises:
        FeatureStoreError: a file or the offline store fails, or the store does not return each row exactly once.
        SchemaError: a view has whole numbers as ids but `ids` has others, or a file has another type than declared.
    """
    if not (join.is_on_files and reads_files(config)):
        return _ask_offline_store(config, join, ids, times)

    def transform(name: str, inputs: pa.Table) -> pa.Table:
        view = store_in_task(config).get_on_demand_feature_view(name)
        try:
            return view.transform_arrow(inputs)
        except Exception as error:
            raise SchemaError(f"on-demand view {name!r} cannot be computed: {first_line(error)}") from error

    return join_files(Path(config.repo_path or "."), join, ids, times, transform)


def _ask_offline_store(config: RepoConfig, join: FeatureJoin, ids: pa.Array, times: pa.Array) -> pa.Table:
    """Return the columns of a join from Feast's offline store."""
    store = store_in_task(config)
    keys = {view.key: as_key(ids, _key_type(view), view) for view in join.sources}
    entity = pa.table({**keys, EVENT_TIMESTAMP: times, _ROW: np.arange(len(ids))}).to_pandas()
    asked: list[tuple[str, Mapping[str, str]]] = [(view.name, view.fields) for view in join.views]
    asked += [(view.name, view.fields) for view in join.computed]
    wanted = [(view, name, field) for view, fields in asked for name, field in fields.items()]
    short = [field for _, _, field in wanted]
    # References instead of a service, which would join all of its views. Long names only if short ones collide, because
    # some databases truncate names of more than 63 characters.
    long = len(set(short)) < len(short) or not set(short).isdisjoint(entity.columns)
    references = [f"{view}:{field}" for view, _, field in wanted]
    try:
        with in_repo(config):
            job = store.get_historical_features(entity_df=entity, features=references, full_feature_names=long)
            joined = job.to_arrow()
    except Exception as error:
        raise FeatureStoreError(
            f"{join.what} could not be joined for {len(entity):,} rows: {first_line(error)}"
        ) from error
    names = {name: f"{view}__{field}" if long else field for view, name, field in wanted}
    missing = [name for name in [_ROW, *names.values()] if name not in joined.column_names]
    if missing:
        have = list_names(joined.column_names, 30)
        raise SchemaError(f"the offline store returned no {list_names(missing)} for {join.what}; it returned {have}")
    rows = joined[_ROW].to_numpy()
    if len(rows) != len(entity) or not np.array_equal(np.sort(rows), np.arange(len(entity))):
        raise FeatureStoreError(
            f"the offline store {config.offline_store.type!r} returned {len(rows):,} rows for {len(entity):,} of "
            f"{join.what}: it drops or repeats rows that share an entity and a time, so its result cannot be used"
        )
    order = pa.array(np.argsort(rows))
    columns = {name: joined[names[name]].take(order) for name in join.columns}
    # PostgreSQL returns times without a zone.
    times_in = {name for name, column in columns.items() if pa.types.is_timestamp(column.type)}
    return pa.table({name: as_utc(c, name, join.what) if name in times_in else c for name, c in columns.items()})


def read_items(
    store: FeatureStore, feast: FeastSettings, item_ids: Sequence[str], fields: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return fields of a few items as of now: field -> item id -> value.

    Raises:
        ConfigError: a field is missing.
        FeatureStoreError: the offline store fails.
    """
    if not fields or not item_ids:
        return {field: {} for field in fields}
    now = pa.array([datetime.now(UTC)] * len(item_ids), pa.timestamp("us", "UTC"))
    join = find_side(read_registry(store), feast, "item").join(fields)
    found = point_in_time(portable_config(store), join, pa.array(item_ids, pa.string()), now)
    return {field: dict(zip(item_ids, found[field].to_pylist(), strict=True)) for field in fields}


def _key_type(view: JoinedView) -> pa.DataType:
    """Return the id type of a view in the offline store, which does not join text to numbers."""
    return view.key_kind if view.key_kind is not None and pa.types.is_integer(view.key_kind) else pa.string()
