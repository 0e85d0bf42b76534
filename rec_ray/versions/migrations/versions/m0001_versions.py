"""First tables: versions, reservations, the publishing lock.

A database of the replaced system has `model_version(id, version, updated_at)` with rows; it keeps them and gets the
other columns. So does a database that is older than the migrations.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create missing tables and add missing columns to existing ones."""
    instant = sa.DateTime(timezone=True)
    added: list[sa.Column[Any]] = [
        sa.Column("run_id", sa.String(200)),
        sa.Column("artifact_uri", sa.Text),
        sa.Column("sha256", sa.String(64)),
        sa.Column("metrics", sa.Text),
        sa.Column("settings_hash", sa.String(64)),
        sa.Column("data_from", instant),
        sa.Column("data_to", instant),
        sa.Column("parent", sa.String(50)),
    ]
    inspector = sa.inspect(op.get_bind())
    if inspector.has_table("model_version"):
        have = {column["name"] for column in inspector.get_columns("model_version")}
        for column in added:
            if column.name not in have:
                op.add_column("model_version", column)
    else:
        op.create_table(
            "model_version",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("version", sa.String(50), nullable=False),
            sa.Column("updated_at", instant, nullable=False),
            *added,
        )
    if not inspector.has_table("model_version_reservation"):
        op.create_table(
            "model_version_reservation",
            sa.Column("version", sa.String(50), primary_key=True),
            sa.Column("run_id", sa.String(200), nullable=False, unique=True),
            sa.Column("reserved_at", instant, nullable=False),
            sa.Column("state", sa.String(20), nullable=False),
        )
    if not inspector.has_table("publishing_lock"):
        op.create_table(
            "publishing_lock",
            sa.Column("name", sa.String(50), primary_key=True),
            sa.Column("owner", sa.Text, nullable=False),
            sa.Column("token", sa.String(32), nullable=False),
            sa.Column("expires_at", instant, nullable=False),
        )
