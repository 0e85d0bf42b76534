"""Deletes the online-store rows of entities, keys included, because an empty row would keep the id.

Input: an open feature store, a join key and ids; the rows are deleted from every feature view of that entity. Feast
(0.67) has no call for it, so this module accesses the three supported stores directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rec_ray.errors import FeatureStoreError
from rec_ray.feature_store.api import (
    EntityKeyProto,
    FeatureStore,
    ValueProto,
    compute_table_id,
    redis_key,
    serialize_entity_key,
)

KNOWN = ("sqlite", "postgres", "redis")
"""Types of online stores that support deletion."""


def delete_online_rows(store: FeatureStore, key: str, ids: Sequence[str | int]) -> list[str]:
    """Delete the rows of entities in all views keyed by this join key alone; return the views.

    Raises:
        FeatureStoreError: the online store is of another type, does not respond or rejects the request.
    """
    kind = str(store.config.online_store.type)
    if kind not in KNOWN:
        raise FeatureStoreError(f"rows of an online store of type {kind!r} cannot be deleted; expected one of {KNOWN}")
    # A view that is not online has no table.
    views = [view for view in store.list_feature_views() if list(view.join_keys) == [key] and view.online]
    keys = [EntityKeyProto(join_keys=[key], entity_values=[_value(each)]) for each in ids]
    online: Any = store._get_provider().online_store
    try:
        if kind == "redis":
            version = store.config.entity_key_serialization_version
            client = online._get_client(store.config.online_store)
            for each in keys:
                client.delete(redis_key(store.project, each, entity_key_serialization_version=version))
        else:
            _delete_in_tables(store, online, kind, views, keys)
    except Exception as error:
        raise FeatureStoreError(f"rows of {key} cannot be deleted from the online store: {error}") from None
    return sorted(view.name for view in views)


def _delete_in_tables(store: FeatureStore, online: Any, kind: str, views: Sequence[Any], keys: Sequence[Any]) -> None:
    config = store.config
    serialized = [
        serialize_entity_key(each, entity_key_serialization_version=config.entity_key_serialization_version)
        for each in keys
    ]
    names = [
        str(compute_table_id(store.project, view, config.registry.enable_online_feature_view_versioning))
        for view in views
    ]
    if kind == "sqlite":
        connection = online._get_conn(config)
        with connection:
            for name in names:
                for each in serialized:
                    connection.execute(f'DELETE FROM "{name}" WHERE entity_key = ?', (each,))
            # Without VACUUM the bytes of deleted rows stay in free pages of the file.
        connection.execute("VACUUM")
        return
    with online._get_conn(config, autocommit=True) as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(f'DELETE FROM "{name}" WHERE entity_key = ANY(%s)', (serialized,))


def _value(each: str | int) -> Any:
    return ValueProto(int64_val=each) if isinstance(each, int) else ValueProto(string_val=each)
