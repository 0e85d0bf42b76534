"""Fence that stops a publisher within a batch after it lost the lock: every pushing process checks the lock itself.

Input: the address of the version database and the token of the lock. `OpenFence.check` passes while the lock is held
and raises afterwards. It is passed to Ray tasks, because a single process may be paused for any time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from rec_ray.errors import LockedError
from rec_ray.versions.connection import VersionConnection, now
from rec_ray.versions.tables import LOCKS, PUSHES

CHECK_SECONDS = 1.0
"""Age of a successful check after which the database is read again."""


@dataclass(frozen=True)
class PushRecord:
    """Record of a push in the database: the version, the candidates, and the event timestamp of the rows."""

    version: str
    name: str
    pushed_at: datetime


@dataclass(frozen=True)
class Fence:
    """Data that a task needs to check the lock. token: token of the lock when it was taken."""

    url: str
    token: str
    password: str | None = field(default=None, repr=False)
    schema: str | None = None

    def open(self) -> OpenFence:
        """Return a fence for this process, which keeps it while it pushes."""
        return OpenFence(self)


class OpenFence:
    """Checks a lock, reading the database at most once a second.

    Between reads a local deadline is enough, because nobody else takes the lock before the expiry that was read. The
    clock continues while the process is stopped and, on Linux, while the machine sleeps.
    """

    def __init__(self, fence: Fence) -> None:
        self.connection = VersionConnection(fence.url, fence.password, fence.schema)
        self._token = fence.token
        self._checked_at = self._deadline = float("-inf")

    def check(self, seconds: float = 0.0) -> bool:
        """Check that the lock is held; return whether the database was read.

        seconds: maximum age of an earlier check that is reused, provided that the lock cannot have expired since.

        Raises:
            LockedError: the lock was taken over or released.
            UnavailableError: the database cannot be reached.
        """
        at = _clock()
        if at - self._checked_at < seconds and at < self._deadline:
            return False
        with self.connection.read("check the publishing lock in") as connection:
            query = sa.select(LOCKS.c.owner, LOCKS.c.token, LOCKS.c.expires_at)
            held = connection.execute(query).first()
            left = 0.0 if held is None else (held.expires_at - now(connection)).total_seconds()
        if held is None or held.token != self._token:
            by = f"{held.owner} took it over" if held else "it was released"
            raise LockedError(f"the publishing lock was lost, {by}; the push stopped, run again")
        self._checked_at, self._deadline = at, at + left
        return True

    def newest_pushes(self) -> list[PushRecord]:
        """Return the newest push, and those of the same version before it back to one of all its candidates.

        Newest first: readers get a row from the first of these pushes that contains it.
        """
        with self.connection.read("read the pushes in") as connection:
            query = sa.select(PUSHES).order_by(PUSHES.c.pushed_at.desc(), PUSHES.c.id.desc()).limit(100)
            rows = connection.execute(query).mappings().all()
        found: list[PushRecord] = []
        for row in rows:
            if found and row["version"] != found[0].version:
                break
            found.append(PushRecord(row["version"], row["name"] or "candidates", row["pushed_at"]))
            if found[-1].name == "candidates":
                break
        return found


def _clock() -> float:
    """Return the seconds of a monotonic clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
