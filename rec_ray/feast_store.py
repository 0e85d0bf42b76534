"""Feast inside Ray tasks: one store a process, and one point-in-time join that loses no row.

The configuration of the driver's store comes in (`portable_config`), features of entities as of given times go out, a
row for each row and in the same order. It knows neither which features mean what nor how rows are cut into tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import FeatureStore, RepoConfig

from rec_ray.errors import FeatureStoreError, SchemaError, listed
from rec_ray.schema import EVENT_TIMESTAMP

_ROW = "rec_ray_row"
_STORES: dict[str, FeatureStore] = {}


def portable_config(store: FeatureStore) -> RepoConfig:
    """Return the store's configuration so that it means the same in a process that works in another folder.

    Feast resolves a relative registry file against the working folder when it is given a configuration (0.67).
    """
    config = store.config.model_copy()
    registry = config.registry
    path = getattr(registry, "path", None)
    if registry.registry_type == "file" and path and "://" not in path and not Path(path).is_absolute():
        config.registry_config = registry.model_copy(update={"path": str(Path(store.repo_path).resolve() / path)})
        config._registry = None
    return config


def store_in_task(config: RepoConfig) -> FeatureStore:
    """Return this process's store; it is opened once, as that costs seconds."""
    key = f"{config.project} {config.repo_path}"
    if key not in _STORES:
        _STORES[key] = FeatureStore(config=config)
    return _STORES[key]


def point_in_time(
    config: RepoConfig, service: str, key: str, ids: pa.Array, times: pa.Array, fields: Sequence[str]
) -> pa.Table:
    """Return `fields` of entities as of given times: a row for each row, in the same order.

    ids: [n] of the join key `key`; times: [n] UTC.

    Raises:
        FeatureStoreError: the offline store fails, or does not return each row exactly once.
        SchemaError: the service does not return a field.
    """
    store = store_in_task(config)
    entity = pa.table({key: ids, EVENT_TIMESTAMP: times, _ROW: np.arange(len(ids))}).to_pandas()
    try:
        joined = store.get_historical_features(entity_df=entity, features=store.get_feature_service(service)).to_arrow()
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
