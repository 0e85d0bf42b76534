"""Alembic migrations of the version database; each only adds tables and columns.

Input: an open connection. Afterwards the database has all tables and columns, and its rows are unchanged. Migrations do
not import the program's tables, because those change and a migration must not. A new migration is a new file in
`versions`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

# Alembic is imported where it is used, because commands that only read versions need none of it.
if TYPE_CHECKING:
    from alembic.config import Config

HISTORY = "rec_ray_migration"
"""Table with the last applied migration; not Alembic's default, which another program may use in this database."""


class NewerDatabaseError(Exception):
    """The database has a migration of a later program that this one cannot work with."""


def upgrade(connection: Connection) -> None:
    """Apply the missing migrations in the transaction of the connection.

    A database that a later program migrated stays unchanged: migrations named by four digits only add, so this program
    uses the columns of its own version.

    Raises:
        NewerDatabaseError: a later program applied a migration of another name.
    """
    from alembic import command

    configuration = _configuration()
    if _is_newer(connection, configuration):
        return
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")


def is_current(connection: Connection) -> bool:
    """Return whether a database has all migrations of this program, and possibly later ones.

    Raises:
        NewerDatabaseError: as `upgrade`.
    """
    from alembic.script import ScriptDirectory

    configuration = _configuration()
    heads = set(ScriptDirectory.from_config(configuration).get_heads())
    return _current_heads(connection) == heads or _is_newer(connection, configuration)


def _current_heads(connection: Connection) -> set[str]:
    from alembic.runtime.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": HISTORY})
    return set(context.get_current_heads())


def _is_newer(connection: Connection, configuration: Config) -> bool:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(configuration).walk_revisions()}
    later = sorted(_current_heads(connection) - known)
    breaking = [revision for revision in later if not re.fullmatch(r"\d{4}", revision)]
    if breaking:
        raise NewerDatabaseError(
            f"a later rec_ray applied the migration {breaking[0]!r}, which is not additive; this program has "
            f"migrations up to {max(known)}: upgrade rec_ray"
        )
    return bool(later)


def _configuration() -> Config:
    from alembic.config import Config

    configuration = Config()
    # Alembic reads values as format strings.
    configuration.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    return configuration
