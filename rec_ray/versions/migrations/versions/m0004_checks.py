"""Checks of a published version, and the reason of a refusal.

A database of revision 0003 gets one column in each of two tables. Both may be null, so that a program of revision 0003
can still read and write.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the missing columns."""
    inspector = sa.inspect(op.get_bind())
    for table, name in (("model_version", "checks"), ("model_version_reservation", "reason")):
        if name not in {column["name"] for column in inspector.get_columns(table)}:
            op.add_column(table, sa.Column(name, sa.Text))
