"""Start times of pushes to the feature store, also of failed ones.

A database of revision 0001 gets one more table; the others are unchanged.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table of pushes."""
    op.create_table(
        "model_version_push",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("version", sa.String(50), nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=False),
    )
