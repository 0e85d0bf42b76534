"""The cause of a failed SQL statement in one line, without passwords.

An error of SQLAlchemy comes in, text for a message of the program goes out. It opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.exc import SQLAlchemyError


def cause_of(error: SQLAlchemyError, secrets: Iterable[str | None] = ()) -> str:
    """Return the first line of what the driver said, with each secret replaced by `***`."""
    cause = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    for secret in secrets:
        if secret:
            cause = cause.replace(secret, "***")
    return cause.splitlines()[0]
