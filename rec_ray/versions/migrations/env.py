"""The script that Alembic runs around the migrations; it reads this file itself, by its path.

The connection that `upgrade` was given comes in, and its transaction is left to the caller. It knows no settings and
opens nothing.
"""

from alembic import context

from rec_ray.versions.migrations import HISTORY

context.configure(
    connection=context.config.attributes["connection"],
    version_table=HISTORY,
    transactional_ddl=False,
)
context.run_migrations()
