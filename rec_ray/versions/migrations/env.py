"""Script in which Alembic runs the migrations; Alembic loads this file by its path.

It uses the connection of `upgrade` and leaves the transaction to the caller.
"""

from alembic import context

from rec_ray.versions.migrations import HISTORY

context.configure(
    connection=context.config.attributes["connection"],
    version_table=HISTORY,
    transactional_ddl=False,
)
context.run_migrations()
