"""When pushing to the feature store began, also of pushes that failed.

A database of revision 0001 gets a table more; what is in the others stays. It knows no rows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table of pushes."""
    op.create_table(
        "model_version_push",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("version", sa.String(50), nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=False),
    )
