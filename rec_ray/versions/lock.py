"""The lock that lets one publisher at a time into a project: a row with an owner and an expiry.

A database and the name of an owner come in, a held lock goes out that renews itself; when its process is killed or
cannot reach the database, it runs out. It does not know what its holder does.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rec_ray.errors import LockedError, RecRayError
from rec_ray.versions.connection import VersionConnection, now
from rec_ray.versions.tables import LOCKS

LOGGER = logging.getLogger(__name__)
POLL_SECONDS = 1.0
"""How often one who waits for the lock looks."""
_PUBLISHING = "publishing"


class PublishingLock:
    """The row that says who publishes; `held` makes, renews and releases it."""

    def __init__(self, database: VersionConnection, owner: str, seconds: float) -> None:
        self.database, self.owner, self.seconds = database, owner, seconds
        # An owner that was killed and starts again is not the one whose lock has to run out.
        self.token = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock if it is free or has run out.

        Raises:
            LockedError: another publisher holds it.
        """
        with self.database.write("take the publishing lock in", LOCKS) as connection:
            at = now(connection)
            held = connection.execute(sa.select(LOCKS).where(LOCKS.c.name == _PUBLISHING)).mappings().first()
            if held and held["expires_at"] > at:
                raise LockedError(
                    f"{held['owner']} is publishing; its lock runs out at {held['expires_at']:%Y-%m-%d %H:%M:%S} UTC "
                    "unless it is renewed: wait for it (publish.wait_seconds), or until then if that run is dead"
                )
            connection.execute(sa.delete(LOCKS).where(LOCKS.c.name == _PUBLISHING))
            expires_at = at + timedelta(seconds=self.seconds)
            values = {"name": _PUBLISHING, "owner": self.owner, "token": self.token, "expires_at": expires_at}
            connection.execute(sa.insert(LOCKS).values(values))

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
def held(database: VersionConnection, owner: str, seconds: float, wait_seconds: float) -> Iterator[PublishingLock]:
    """Be the only publisher while the context lasts.

    A daemon thread renews the lock; when its process is killed, or cannot reach the database, it runs out.

    Args:
        database: where the row is.
        owner: who holds it, in words for the one who has to wait.
        seconds: after so long without renewal the lock is free.
        wait_seconds: how long to wait for another publisher.

    Raises:
        LockedError: another publisher holds it; the message names the owner and when the lock runs out.
    """
    lock = PublishingLock(database, owner, seconds)
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
