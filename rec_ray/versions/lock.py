"""The lock that lets one publisher at a time into a project: a row with an owner and an expiry.

A database and the name of an owner come in, a held lock goes out that renews itself. The lock of a process that ended
is taken over; one that cannot reach the database runs out. The module does not use what the lock protects.
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
"""Time between two tries of a publisher that waits for the lock."""
_PUBLISHING = "publishing"


class PublishingLock:
    """The row that names the publisher; `held` makes, renews and releases it."""

    def __init__(self, database: VersionConnection, owner: str, seconds: float, run_id: str | None = None) -> None:
        self.database, self.owner, self.seconds, self.run_id = database, owner, seconds, run_id
        # An owner that was killed and starts again is not the one whose lock has to run out.
        self.token = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock if it is free, has run out, or belongs to a process that cannot release it any more.

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
        """Return why a lock that has not run out may be taken over, or None.

        held: a row of `LOCKS`; a program of an earlier migration left the new columns null.
        """
        if self.run_id is not None and held["run_id"] == self.run_id:
            return f"it belongs to this run, {self.run_id}"
        here = held["machine"] is not None and held["machine"] == this_machine()
        if here and start_of_process(held["pid"]) != held["pid_started"]:
            return f"its process {held['pid']} on this machine has ended"
        span = timedelta(seconds=max(held["seconds"] or 0, self.seconds))
        if held["expires_at"] > at + span:
            return f"it runs out more than {span.total_seconds():,.0f} s from now, so a clock went back since"
        return None

    def acquire_within(self, seconds: float) -> None:
        """Take the lock, waiting for as long as given.

        Raises:
            LockedError: another publisher still holds it then.
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
        """Find out whether nobody has taken the lock over, as happens to one that was not renewed in time.

        Raises:
            LockedError: it was taken over; names the present owner.
        """
        if connection is None:
            with self.database.read("check the publishing lock in") as connection:
                return self.check(connection)
        # FOR UPDATE: until this transaction ends nobody can take the lock over (PostgreSQL; SQLite has one writer).
        held = connection.execute(sa.select(LOCKS.c.owner, LOCKS.c.token).with_for_update()).first()
        if held is None or held.token != self.token:
            by = f"{held.owner} took it over" if held else "it was released"
            raise LockedError(f"the publishing lock of {self.owner} was lost, {by}; nothing was committed, run again")
        return None

    def renew_until_released(self) -> None:
        """Move the expiry ahead three times in its span; a database that is away for a moment is tried again."""
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
        """Free the lock; when the database is away it runs out by itself."""
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
    """Be the only publisher while the context lasts.

    A daemon thread renews the lock. When its process is killed, a process on the same machine or of the same run takes
    the lock over; others wait until it runs out.

    Args:
        database: where the row is.
        owner: the holder, in words for a publisher that has to wait.
        seconds: after so long without renewal the lock is free.
        wait_seconds: time to wait for another publisher.
        run_id: a later process of the same run takes the lock over at once.

    Raises:
        LockedError: another publisher holds it; the message names the owner and when the lock runs out.
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
    """The publisher that the database names. age: seconds since it took the lock, None for an earlier program's."""

    owner: str
    token: str
    expires_at: datetime
    age: float | None


def find_holder(database: VersionConnection) -> LockHolder | None:
    """Return the holder of the lock, also of one that has run out, or None.

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
    """Delete the lock with this token; return whether it was still there. Its holder stops at the next check."""
    with database.write("free the publishing lock in", LOCKS) as connection:
        return bool(connection.execute(sa.delete(LOCKS).where(LOCKS.c.token == token)).rowcount)


def this_machine() -> str | None:
    """Return a name for the process numbers of this machine since it started; None where there is no /proc.

    Containers of one machine have process numbers of their own, and so another name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def start_of_process(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the start of the machine; None when there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold spaces; state and start are the 1st and the 20th field behind it.
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
