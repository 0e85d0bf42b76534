"""Cause of a failed SQL statement in one line, without passwords.

Input: an error of SQLAlchemy. Output: text for an error message.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.exc import SQLAlchemyError


def cause_of(error: SQLAlchemyError, secrets: Iterable[str | None] = ()) -> str:
    """Return the first line of the driver's error, with each secret replaced by `***`."""
    cause = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    for secret in secrets:
        if secret:
            cause = cause.replace(secret, "***")
    return cause.splitlines()[0]
