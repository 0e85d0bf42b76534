"""Sums of candidates, the process behind a lock and a push, and erased ids.

A database of revision 0002 gets columns in three tables and two more tables. All of them may be null or empty, so that
a program of revision 0002 can still read and write.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the missing columns and create the missing tables."""
    instant = sa.DateTime(timezone=True)
    added: dict[str, list[sa.Column[Any]]] = {
        "model_version": [sa.Column("candidates_sha256", sa.String(64))],
        "model_version_push": [sa.Column("name", sa.String(200))],
        "publishing_lock": [
            sa.Column("run_id", sa.String(200)),
            sa.Column("machine", sa.String(200)),
            sa.Column("pid", sa.Integer),
            sa.Column("pid_started", sa.BigInteger),
            sa.Column("seconds", sa.Float),
            sa.Column("acquired_at", instant),
        ],
    }
    inspector = sa.inspect(op.get_bind())
    for table, columns in added.items():
        have = {column["name"] for column in inspector.get_columns(table)}
        for column in columns:
            if column.name not in have:
                op.add_column(table, column)
    if not inspector.has_table("model_version_candidates"):
        op.create_table(
            "model_version_candidates",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("version", sa.String(50), nullable=False),
            sa.Column("name", sa.String(200), nullable=False),
            sa.Column("sha256", sa.String(64), nullable=False),
            sa.Column("made_at", instant, nullable=False),
        )
    if not inspector.has_table("model_version_erased"):
        op.create_table(
            "model_version_erased",
            sa.Column("entity", sa.String(20), primary_key=True),
            sa.Column("id_sha256", sa.String(64), primary_key=True),
            sa.Column("erased_at", instant, nullable=False),
        )
