"""The tables of the version database as the program reads and writes them.

Nothing comes in; the tables and the type of their instants go out, for `model_version` and `publishing_lock`. How a
database gets these tables is told by `migrations`, step by step; this module knows only what they are today.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An instant: aware in the program, stored as UTC; what others stored without a zone is read as UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the instant as it is stored.

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
        """Return a stored instant as an aware one."""
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
)
"""One row a publication, inserted and never changed; the newest `updated_at` is live."""

RESERVATIONS = sa.Table(
    "model_version_reservation",
    METADATA,
    sa.Column("version", sa.String(50), primary_key=True),
    sa.Column("run_id", sa.String(200), nullable=False, unique=True),
    sa.Column("reserved_at", UtcDateTime, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
)
"""One row a run: its number, and how far that came (`model_version.STATES`)."""

PUSHES = sa.Table(
    "model_version_push",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.String(50), nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("pushed_at", UtcDateTime, nullable=False),
)
"""One row for each time that pushing to the feature store began, whether it ended well or not."""

LOCKS = sa.Table(
    "publishing_lock",
    METADATA,
    sa.Column("name", sa.String(50), primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
)
"""At most one row: who publishes now."""
