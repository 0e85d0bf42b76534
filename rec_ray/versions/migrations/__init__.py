"""How a version database came to be as it is: Alembic migrations, each only adding to what is there.

An open connection comes in and the database has all tables and columns afterwards; what it holds stays. Migrations do
not import the program's tables: those change, and what a migration did must not. A new one is a new file in `versions`.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

HISTORY = "rec_ray_migration"
"""Table with the last migration done; not Alembic's usual one, which another program in this database may have."""


def upgrade(connection: Connection) -> None:
    """Do the migrations that a database lacks, in the transaction of the connection."""
    configuration = _configuration()
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")


def is_current(connection: Connection) -> bool:
    """Say whether a database has all migrations."""
    context = MigrationContext.configure(connection, opts={"version_table": HISTORY})
    return set(context.get_current_heads()) == set(ScriptDirectory.from_config(_configuration()).get_heads())


def _configuration() -> Config:
    configuration = Config()
    # Alembic reads values as format strings.
    configuration.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    return configuration
