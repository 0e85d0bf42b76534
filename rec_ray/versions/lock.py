"""Publishing lock of a project, for one publisher at a time: a row with an owner and an expiry.

Input: a database and the description of an owner. Output: a lock that renews itself. The lock of an ended process is
taken over; the lock of a process that cannot reach the database expires.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rec_ray.errors import LockedError, RecRayError
from rec_ray.versions.connection import VersionConnection, now
from rec_ray.versions.tables import LOCKS

LOGGER = logging.getLogger(__name__)
POLL_SECONDS = 1.0
"""Interval between two attempts of a publisher that waits for the lock."""
_PUBLISHING = "publishing"


class PublishingLock:
    """The row that names the publisher; `held` makes, renews and releases it."""

    def __init__(self, database: VersionConnection, owner: str, seconds: float, run_id: str | None = None) -> None:
        self.database, self.owner, self.seconds, self.run_id = database, owner, seconds, run_id
        # A restarted owner gets a new token, so that it differs from its killed predecessor.
        self.token = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock if it is free, has expired, or belongs to a process that can no longer release it.

        Raises:
            LockedError: another publisher holds it.
        """
        with self.database.write("take the publishing lock in", LOCKS) as connection:
            at = now(connection)
            held = connection.execute(sa.select(LOCKS).where(LOCKS.c.name == _PUBLISHING)).mappings().first()
            if held and held["expires_at"] > at:
                reason = self._reason_to_take(held, at)
                if reason is None:
                    raise LockedError(
                        f"{held['owner']} is publishing; its lock runs out at {held['expires_at']:%Y-%m-%d %H:%M:%S} "
                        "UTC unless it is renewed: wait for it (publish.wait_seconds), or, if that run is dead, free "
                        "it: rec-ray versions unlock --yes"
                    )
                LOGGER.warning("taking over the publishing lock of %s: %s", held["owner"], reason)
            connection.execute(sa.delete(LOCKS).where(LOCKS.c.name == _PUBLISHING))
            values = {
                "name": _PUBLISHING,
                "owner": self.owner,
                "token": self.token,
                "expires_at": at + timedelta(seconds=self.seconds),
                "run_id": self.run_id,
                "machine": this_machine(),
                "pid": os.getpid(),
                "pid_started": start_of_process(os.getpid()),
                "seconds": self.seconds,
                "acquired_at": at,
            }
            connection.execute(sa.insert(LOCKS).values(values))

    def _reason_to_take(self, held: Mapping[Any, Any], at: datetime) -> str | None:
        """Return the reason for which an unexpired lock may be taken over, or None.

        held: a row of `LOCKS`; an earlier version of the program leaves the newer columns null.
        """
        if self.run_id is not None and held["run_id"] == self.run_id:
            return f"it belongs to this run, {self.run_id}"
        here = held["machine"] is not None and held["machine"] == this_machine()
        if here and _has_ended(held["pid"], held["pid_started"]):
            return f"its process {held['pid']} on this machine has ended"
        span = timedelta(seconds=max(held["seconds"] or 0, self.seconds))
        if held["expires_at"] > at + span:
            return f"it runs out more than {span.total_seconds():,.0f} s from now, so a clock went back since"
        return None

    def acquire_within(self, seconds: float) -> None:
        """Take the lock, waiting at most `seconds`.

        Raises:
            LockedError: another publisher still holds it.
        """
        deadline = time.monotonic() + seconds
        told = False
        while True:
            try:
                return self.acquire()
            except LockedError as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if not told:
                    LOGGER.info("waiting up to %.0f s: %s", seconds, error)
                    told = True
                time.sleep(min(POLL_SECONDS, left))

    def check(self, connection: Connection | None = None) -> None:
        """Raise if the lock was taken over, as happens if it was not renewed in time.

        Raises:
            LockedError: it was taken over; the message names the present owner.
        """
        if connection is None:
            with self.database.read("check the publishing lock in") as connection:
                return self.check(connection)
        # FOR UPDATE prevents a takeover until this transaction ends (PostgreSQL; SQLite has one writer anyway).
        held = connection.execute(sa.select(LOCKS.c.owner, LOCKS.c.token).with_for_update()).first()
        if held is None or held.token != self.token:
            by = f"{held.owner} took it over" if held else "it was released"
            raise LockedError(f"the publishing lock of {self.owner} was lost, {by}; nothing was committed, run again")
        return None

    def renew_until_released(self) -> None:
        """Renew the expiry three times per span; retry while the database is briefly unavailable."""
        while not self._released.wait(self.seconds / 3):
            try:
                with self.database.write("renew the publishing lock in", LOCKS) as connection:
                    expires_at = now(connection) + timedelta(seconds=self.seconds)
                    renewed = sa.update(LOCKS).where(LOCKS.c.token == self.token).values(expires_at=expires_at)
                    if connection.execute(renewed).rowcount == 0 and not self._released.is_set():
                        LOGGER.error("the publishing lock of %s was lost: it was not renewed in time", self.owner)
                        return
            except RecRayError as error:
                LOGGER.warning("%s; trying again in %.0f s", error, self.seconds / 3)

    def release(self) -> None:
        """Free the lock; if the database is unavailable, the lock expires by itself."""
        self._released.set()
        try:
            with self.database.write("release the publishing lock in", LOCKS) as connection:
                connection.execute(sa.delete(LOCKS).where(LOCKS.c.token == self.token))
        except RecRayError as error:
            LOGGER.warning("%s; the publishing lock runs out in %.0f s", error, self.seconds)


@contextlib.contextmanager
def held(
    database: VersionConnection, owner: str, seconds: float, wait_seconds: float, run_id: str | None = None
) -> Iterator[PublishingLock]:
    """Hold the publishing lock while the context lasts.

    A daemon thread renews the lock. If its process is killed, a process on the same machine or of the same run takes
    the lock over; others wait until it expires.

    Args:
        database: database with the row of the lock.
        owner: description of the holder for waiting publishers.
        seconds: time without renewal after which the lock is free.
        wait_seconds: time to wait for another publisher.
        run_id: a later process of the same run takes the lock over at once.

    Raises:
        LockedError: another publisher holds it; the message names the owner and the expiry of the lock.
    """
    lock = PublishingLock(database, owner, seconds, run_id)
    lock.acquire_within(wait_seconds)
    in_context = contextvars.copy_context().run
    renewing = threading.Thread(
        target=in_context, args=(lock.renew_until_released,), name="publishing-lock", daemon=True
    )
    renewing.start()
    try:
        yield lock
    finally:
        lock.release()


@dataclass(frozen=True)
class LockHolder:
    """Holder of the lock in the database. age: seconds since it took the lock; None if an earlier program wrote it."""

    owner: str
    token: str
    expires_at: datetime
    age: float | None


def find_holder(database: VersionConnection) -> LockHolder | None:
    """Return the holder of the lock, even if the lock has expired, or None.

    Raises:
        UnavailableError: the database cannot be reached.
    """
    if not database.exists:
        return None
    with database.read("read the publishing lock in") as connection:
        if not sa.inspect(connection).has_table(LOCKS.name):
            return None
        have = {column["name"] for column in sa.inspect(connection).get_columns(LOCKS.name)}
        query = sa.select(*[column for column in LOCKS.columns if column.name in have])
        row = connection.execute(query).mappings().first()
        if row is None:
            return None
        acquired_at = row.get("acquired_at")
        age = None if acquired_at is None else (now(connection) - acquired_at).total_seconds()
    return LockHolder(row["owner"], row["token"], row["expires_at"], age)


def free_lock(database: VersionConnection, token: str) -> bool:
    """Delete the lock with this token; return whether it existed. Its holder stops at the next check."""
    with database.write("free the publishing lock in", LOCKS) as connection:
        return bool(connection.execute(sa.delete(LOCKS).where(LOCKS.c.token == token)).rowcount)


def this_machine() -> str | None:
    """Return a name of the process-id namespace of this machine since its boot; None without /proc.

    Containers on one machine have process-id namespaces of their own, and so different names.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _has_ended(pid: int, started: int | None) -> bool:
    """Return whether a process of this machine has ended, although its process id may be reused."""
    found = start_of_process(pid)
    if found is not None:
        return found != started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # /proc may hide processes of other users.
    return Path(f"/proc/{pid}/stat").exists()  # A zombie has ended and waits for its parent.


def start_of_process(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot; None if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may contain spaces; state and start are the 1st and 20th field after it.
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
