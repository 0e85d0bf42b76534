"""A publisher that lost the lock stops within a batch: each process that pushes checks the lock itself.

The address of the version database and the token of the lock come in; `OpenFence.check` passes while the lock is held
and raises afterwards. It travels into the tasks of Ray, because a process may be paused alone, for any time. It knows
no rows.
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
    """One push as the database has it: the version, which of its candidates, and the event timestamp of the rows."""

    version: str
    name: str
    pushed_at: datetime


@dataclass(frozen=True)
class Fence:
    """Data that a task needs to check the lock. token: that of the lock as it was taken."""

    url: str
    token: str
    password: str | None = field(default=None, repr=False)
    schema: str | None = None

    def open(self) -> OpenFence:
        """Return a fence for one process, which is to keep it while it pushes."""
        return OpenFence(self)


class OpenFence:
    """Checks a lock, reading the database at most once a second.

    In between a local deadline holds: until the expiry that was read, nobody else takes the lock. The clock goes on
    while the process is stopped, and on Linux while the machine sleeps.
    """

    def __init__(self, fence: Fence) -> None:
        self.connection = VersionConnection(fence.url, fence.password, fence.schema)
        self._token = fence.token
        self._checked_at = self._deadline = float("-inf")

    def check(self, seconds: float = 0.0) -> bool:
        """Return if the lock is held, and then whether the database was read.

        seconds: it is not, when it was less than so long ago and the lock cannot have run out since.

        Raises:
            LockedError: it was taken over or released.
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
        """Return the push that began last, and those of the same version before it up to one of all its candidates.

        Newest first: a row of the first that has it is the one that readers get.
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
    """Return the seconds of a clock that never goes back."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
