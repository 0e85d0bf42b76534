"""Tables of the version database in their present form, and the column type of their instants.

`registry` and `lock` read and write them; `migrations` creates them in a database, step by step.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Instant: timezone-aware in the program, stored as UTC; a stored value without a time zone is read as UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the instant in its stored form.

        Raises:
            ValueError: it has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; give an aware datetime")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return a stored instant as a timezone-aware one."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA = sa.MetaData()
VERSIONS = sa.Table(
    "model_version",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.String(50), nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("run_id", sa.String(200)),
    sa.Column("artifact_uri", sa.Text),
    sa.Column("sha256", sa.String(64)),
    sa.Column("metrics", sa.Text),
    sa.Column("settings_hash", sa.String(64)),
    sa.Column("data_from", UtcDateTime),
    sa.Column("data_to", UtcDateTime),
    sa.Column("parent", sa.String(50)),
    sa.Column("candidates_sha256", sa.String(64)),
    sa.Column("checks", sa.Text),
)
"""One row per publication, inserted and never changed; the newest `updated_at` is live."""

RESERVATIONS = sa.Table(
    "model_version_reservation",
    METADATA,
    sa.Column("version", sa.String(50), primary_key=True),
    sa.Column("run_id", sa.String(200), nullable=False, unique=True),
    sa.Column("reserved_at", UtcDateTime, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("reason", sa.Text),
)
"""One row per run: its number and the state of that (`registry.State`)."""

PUSHES = sa.Table(
    "model_version_push",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.String(50), nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("pushed_at", UtcDateTime, nullable=False),
    sa.Column("name", sa.String(200)),
)
"""One row per started push to the feature store, successful or not. name: candidates of the version, as in
`CANDIDATES`."""

CANDIDATES = sa.Table(
    "model_version_candidates",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.String(50), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("made_at", UtcDateTime, nullable=False),
)
"""The SHA-256 sum of every manifest of candidates, recorded before the manifest is written. name: folder below that of
the version, `candidates` or `increments/NAME`."""

ERASED = sa.Table(
    "model_version_erased",
    METADATA,
    sa.Column("entity", sa.String(20), primary_key=True),
    sa.Column("id_sha256", sa.String(64), primary_key=True),
    sa.Column("erased_at", UtcDateTime, nullable=False),
)
"""Forgotten users and items; only a hash of the id is kept. entity: `user` or `item`."""

LOCKS = sa.Table(
    "publishing_lock",
    METADATA,
    sa.Column("name", sa.String(50), primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("run_id", sa.String(200)),
    sa.Column("machine", sa.String(200)),
    sa.Column("pid", sa.Integer),
    sa.Column("pid_started", sa.BigInteger),
    sa.Column("seconds", sa.Float),
    sa.Column("acquired_at", UtcDateTime),
)
"""At most one row: the publisher. machine, pid, pid_started: its process, so that other processes on that machine can
detect its end. seconds: span for which the lock was taken or renewed."""
