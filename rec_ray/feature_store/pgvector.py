"""Vector index of a PostgreSQL online store, which Feast does not create: check for it, create it, drop it.

Input: an open feature store and push targets. Output: the views without an index, or the created index. Other online
stores index their vectors themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from rec_ray.errors import DataError, FeatureStoreError
from rec_ray.feature_store.api import FeatureStore, compute_table_id
from rec_ray.feature_store.push_targets import PushTarget
from rec_ray.storage.sql_errors import cause_of

Kind = Literal["hnsw", "ivfflat"]
OPERATORS = {"cosine": "vector_cosine_ops", "dot": "vector_ip_ops"}
"""Similarity of a model -> operator class of pgvector."""
_INDEXES = """
    SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    WHERE i.indrelid = to_regclass(:table) AND i.indisvalid AND a.amname IN ('hnsw', 'ivfflat')
"""


def has_vectors_in_postgres(store: FeatureStore) -> bool:
    """Return whether the online store is a PostgreSQL that stores vectors for pgvector."""
    online = store.config.online_store
    return str(online.type) == "postgres" and bool(online.vector_enabled)


def missing_vector_indexes(store: FeatureStore, targets: Iterable[PushTarget]) -> list[str]:
    """Return the views with vectors in PostgreSQL that have no vector index; none for other online stores.

    Raises:
        FeatureStoreError: the online store does not respond.
    """
    with_vectors = [target for target in targets if target.vectors]
    if not has_vectors_in_postgres(store) or not with_vectors:
        return []
    with _connected(store) as connection:
        found = [
            connection.scalar(sa.text(_INDEXES), {"table": _table(store, target, connection)})
            for target in with_vectors
        ]
    return [target.view for target, count in zip(with_vectors, found, strict=True) if not count]


def make_vector_index(store: FeatureStore, target: PushTarget, similarity: str, kind: Kind = "hnsw") -> bool:
    """Create the index of a view's vectors and return True, or False if it exists already.

    The column takes the length of the stored vectors, because pgvector requires a fixed length for an index: vectors of
    another length can only be pushed after `drop_vector_index`. Readers are blocked only while the column is altered.

    Raises:
        DataError: no vector is stored yet, or the vectors differ in length.
        FeatureStoreError: the online store does not respond or rejects the statement.
    """
    if not has_vectors_in_postgres(store):
        raise DataError("only a PostgreSQL online store with vector_enabled: true takes an index from rec_ray")
    with _connected(store) as connection:
        table = _table(store, target, connection)
        if connection.scalar(sa.text(_INDEXES), {"table": table}):
            return False
        sizes = connection.scalars(
            sa.text(f"SELECT DISTINCT vector_dims(vector_value) FROM {table} WHERE vector_value IS NOT NULL LIMIT 2")
        ).all()
        if len(sizes) != 1:
            found = "no vector yet; publish first" if not sizes else f"vectors of {sizes[0]} and {sizes[1]} numbers"
            raise DataError(f"the online table of view {target.view!r} holds {found}")
        connection.execute(sa.text(f"ALTER TABLE {table} ALTER COLUMN vector_value TYPE vector({int(sizes[0])})"))
        # Remove the invalid index of an interrupted attempt.
        connection.execute(sa.text(f"DROP INDEX CONCURRENTLY IF EXISTS {_index(store, target, connection)}"))
        name = connection.dialect.identifier_preparer.quote(_index_name(store, target))
        connection.execute(
            sa.text(f"CREATE INDEX CONCURRENTLY {name} ON {table} USING {kind} (vector_value {OPERATORS[similarity]})")
        )
    return True


def drop_vector_index(store: FeatureStore, target: PushTarget) -> None:
    """Drop the index, so that the column accepts vectors of any length again.

    Raises:
        FeatureStoreError: the online store does not respond or rejects the statement.
    """
    with _connected(store) as connection:
        connection.execute(sa.text(f"DROP INDEX CONCURRENTLY IF EXISTS {_index(store, target, connection)}"))
        table = _table(store, target, connection)
        connection.execute(sa.text(f"ALTER TABLE {table} ALTER COLUMN vector_value TYPE vector"))


def _table_name(store: FeatureStore, target: PushTarget) -> str:
    view = store.get_feature_view(target.view)
    return str(compute_table_id(store.project, view, store.config.registry.enable_online_feature_view_versioning))


def _index_name(store: FeatureStore, target: PushTarget) -> str:
    return f"{_table_name(store, target)}_vector"


def _table(store: FeatureStore, target: PushTarget, connection: Connection) -> str:
    return _qualified(store, _table_name(store, target), connection)


def _index(store: FeatureStore, target: PushTarget, connection: Connection) -> str:
    return _qualified(store, _index_name(store, target), connection)


def _qualified(store: FeatureStore, name: str, connection: Connection) -> str:
    """Return a name with its schema, quoted, because SQL names cannot be parameters."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    online = store.config.online_store
    return f"{quote(online.db_schema or online.user)}.{quote(name)}"


@contextlib.contextmanager
def _connected(store: FeatureStore) -> Iterator[Connection]:
    """Connect as Feast does, in autocommit, because CREATE INDEX CONCURRENTLY cannot run inside a transaction."""
    online: Any = store.config.online_store
    address = sa.URL.create(
        "postgresql+psycopg", online.user, online.password, online.host, online.port, online.database
    )
    tls = {
        "sslmode": online.sslmode,
        "sslkey": online.sslkey_path,
        "sslcert": online.sslcert_path,
        "sslrootcert": online.sslrootcert_path,
    }
    arguments = {name: value for name, value in tls.items() if value}
    engine = sa.create_engine(
        address,
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
        connect_args={**arguments, "connect_timeout": 30},
    )
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as error:
        cause = cause_of(error, [online.password])
        raise FeatureStoreError(f"the online store at {online.host}:{online.port} failed: {cause}") from None
