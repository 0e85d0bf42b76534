"""Registry of published versions in a SQL database: reserved numbers, committed versions, the publishing lock.

A run reserves a number with its id and later publishes a `VersionRow` under it; `SELECT version FROM model_version
ORDER BY updated_at DESC LIMIT 1` is the live version at every instant, because rows are only inserted, complete and
with the newest time. The module uses neither the files of a version nor the feature store.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from rec_ray.candidate_store.erasure import ITEM, USER, Erased, hash_id
from rec_ray.errors import ConfigError, DataError
from rec_ray.logs import LOGGER
from rec_ray.retrieval.json_values import replace_non_finite
from rec_ray.versions.connection import VersionConnection, now
from rec_ray.versions.lock import LockHolder, PublishingLock, find_holder, free_lock, held
from rec_ray.versions.push_fence import Fence
from rec_ray.versions.tables import CANDIDATES, ERASED, PUSHES, RESERVATIONS, VERSIONS

State = Literal["reserved", "stored", "refused", "published", "pruned"]
"""States of a version number: given to a run, model stored, refused by the gate, published, files removed."""
EXPIRED_RUN = timedelta(days=7)
"""A run that reserved a number so long ago and stored nothing counts as dead."""


@dataclass(frozen=True)
class VersionRow:
    """One publication of a version; a rollback publishes an older version again, as a new row.

    metrics: JSON values; a number that is not finite is stored as null.
    data_from, data_to: range of the training events, timezone-aware.
    parent: the version that was live before; `publish` fills it in.
    id, updated_at: set by `publish`.
    candidates_sha256: sum of the manifest of the candidates that were pushed.
    checks: checks of the night, as JSON values.
    """

    version: str
    run_id: str | None = None
    artifact_uri: str | None = None
    sha256: str | None = None
    metrics: Mapping[str, Any] | None = None
    settings_hash: str | None = None
    data_from: datetime | None = None
    data_to: datetime | None = None
    parent: str | None = None
    updated_at: datetime | None = None
    id: int | None = None
    candidates_sha256: str | None = None
    checks: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Reservation:
    """Version number of a run and its state. reason: the sentence of a refusal."""

    version: str
    run_id: str
    reserved_at: datetime
    state: str
    reason: str | None = None


class VersionDatabase:
    """The version tables in SQLite or PostgreSQL.

    No connection is opened until a method is called. Methods that write migrate the tables first; methods that read
    change nothing and return nothing if there are no tables yet. Every method raises UnavailableError when the database
    cannot be reached or refuses.
    """

    def __init__(self, url: str, password: str | None = None, schema: str | None = None) -> None:
        """url: SQLAlchemy address without a password, such as `sqlite:////folder/versions.db`.

        schema: PostgreSQL schema of all tables; each schema has its own versions, numbers and lock.

        Raises:
            ConfigError: the address cannot be read, names another kind of database, or contains a password.
        """
        self.connection = VersionConnection(url, password, schema)
        self._address, self._password, self._schema = url, password, schema
        self.url = self.connection.url

    def __repr__(self) -> str:
        return f"VersionDatabase({self.url!r})"

    def migrate(self) -> None:
        """Create missing tables and add missing columns to existing ones; never remove anything."""
        self.connection.migrate()

    def is_migrated(self) -> bool:
        """Return whether the database has all tables and columns of this program, without changing it."""
        return self.connection.is_migrated()

    def reserve(self, run_id: str) -> str:
        """Return the number of a run: one above all existing ones, and the same in every attempt of the run.

        Raises:
            ConfigError: the run id is empty or longer than 200 characters.
        """
        if not 0 < len(run_id) <= 200:
            raise ConfigError(f"a run id has 1 to 200 characters; got {len(run_id)}")
        with self.connection.write("reserve a version in", RESERVATIONS) as connection:
            mine = connection.scalar(sa.select(RESERVATIONS.c.version).where(RESERVATIONS.c.run_id == run_id))
            if mine is not None:
                return str(mine)
            taken = sa.union(sa.select(VERSIONS.c.version), sa.select(RESERVATIONS.c.version))
            numbers = [int(text) for text in connection.scalars(taken) if text and text.isascii() and text.isdigit()]
            version = str(max(numbers, default=0) + 1)
            values = {"version": version, "run_id": run_id, "reserved_at": now(connection), "state": "reserved"}
            connection.execute(sa.insert(RESERVATIONS).values(values))
            return version

    def publish(self, row: VersionRow, lock: PublishingLock | None = None) -> VersionRow:
        """Insert the row that makes a version live, as the last action of a publication.

        Its `updated_at` is now, or just above the newest one if the clock went backwards. If the live row has the same
        version, checksum and run, it is returned and nothing is inserted, so the step can be repeated.

        Args:
            row: the version; `id`, `updated_at` and, when None, `parent` are filled in.
            lock: the lock that the publisher holds; checked in the same transaction.

        Raises:
            LockedError: the lock is no longer held.
            DataError: the version was published before with another checksum, a value does not fit the table, or
                the table cannot be ordered by time.
        """
        if not 0 < len(row.version) <= 50:
            raise DataError(f"a version has 1 to 50 characters; got {row.version!r}")
        for name, instant in (("data_from", row.data_from), ("data_to", row.data_to)):
            if instant is not None and instant.tzinfo is None:
                raise DataError(f"{name} of version {row.version} has no time zone: {instant}")
        with self.connection.write(f"publish version {row.version} in", VERSIONS) as connection:
            if lock is not None:
                lock.check(connection)
            for sha256 in connection.scalars(sa.select(VERSIONS.c.sha256).where(VERSIONS.c.version == row.version)):
                if None not in (sha256, row.sha256) and sha256 != row.sha256:
                    raise DataError(
                        f"version {row.version} was published with the checksum {sha256}, now it has {row.sha256}; "
                        "a published version never changes: run again to get a new one"
                    )
            newest_rows = connection.execute(_newest_first(VERSIONS.columns).limit(2)).mappings().all()
            live = newest_rows[0] if newest_rows else None
            same = ("version", "sha256", "run_id", "candidates_sha256")
            if live and not _is_tie(newest_rows) and all(live[name] == getattr(row, name) for name in same):
                return _row(live)
            at, newest = now(connection), live["updated_at"] if live else None
            updated_at = at if newest is None else max(at, newest + timedelta(microseconds=1))
            parent = row.parent
            if parent is None and live is not None:
                # New candidates of the live version keep its parent, which is the target of a rollback.
                parent = live["parent"] if live["version"] == row.version else str(live["version"])
            published = replace(row, parent=parent, updated_at=updated_at, id=None)
            values = {field.name: getattr(published, field.name) for field in fields(published) if field.name != "id"}
            metrics = None if row.metrics is None else json.dumps(replace_non_finite(row.metrics), sort_keys=True)
            checks = None if row.checks is None else json.dumps(replace_non_finite(row.checks))
            texts = {"metrics": metrics, "checks": checks}
            inserted = sa.insert(VERSIONS).values({**values, **texts}).returning(VERSIONS.c.id)
            new_id = connection.scalar(inserted)
            if connection.scalar(_newest_first([VERSIONS.c.id]).limit(1)) != new_id:
                raise DataError(
                    f"model_version in {self.url} cannot be ordered: a row has no updated_at, or one in another format "
                    "or precision, and would stay the live one; correct that row"
                )
            is_mine = RESERVATIONS.c.version == row.version
            connection.execute(sa.update(RESERVATIONS).where(is_mine).values(state="published"))
            return replace(published, id=new_id)

    def live(self) -> str | None:
        """Return the version that readers see, or None if no version was published yet."""
        rows = self._rows(2)
        return rows[0].version if rows else None

    def list_versions(self) -> list[VersionRow]:
        """Return all publications, the live one first."""
        return self._rows()

    def get(self, version: str) -> VersionRow | None:
        """Return the newest publication of a version, or None."""
        rows = self._rows(1, version)
        return rows[0] if rows else None

    def mark(
        self, version: str, state: State, lock: PublishingLock | None = None, *, reason: str | None = None
    ) -> None:
        """Record the state of a number; a number that was not reserved here, such as one of another system, has none.

        lock: checked in the same transaction. reason: for a refusal.
        """
        with self.connection.write(f"record the state of version {version} in", RESERVATIONS) as connection:
            if lock is not None:
                lock.check(connection)
            mine = RESERVATIONS.c.version == version
            connection.execute(sa.update(RESERVATIONS).where(mine).values(state=state, reason=reason))

    def reservations(self) -> list[Reservation]:
        """Return all reserved numbers, the oldest first."""
        if not self._has(RESERVATIONS):
            return []
        with self.connection.read("read the reservations in") as connection:
            have = {column["name"] for column in sa.inspect(connection).get_columns(RESERVATIONS.name)}
            columns = [column for column in RESERVATIONS.columns if column.name in have]
            query = sa.select(*columns).order_by(RESERVATIONS.c.reserved_at)
            return [Reservation(**found) for found in connection.execute(query).mappings()]

    def running(self) -> set[str]:
        """Return the versions of possibly active runs: reserved less than a week ago and not stored."""
        with self.connection.read("read the time of") as connection:
            since = now(connection) - EXPIRED_RUN
        return {each.version for each in self.reservations() if each.state == "reserved" and each.reserved_at > since}

    def record_candidates(self, version: str, name: str, sha256: str) -> None:
        """Record the sum of a manifest of candidates before it is written. name: as in `tables.CANDIDATES`."""
        with self.connection.write(f"record the candidates of version {version} in", CANDIDATES) as connection:
            values = {"version": version, "name": name, "sha256": sha256, "made_at": now(connection)}
            connection.execute(sa.insert(CANDIDATES).values(values))

    def recorded_candidates(self, version: str) -> dict[str, set[str]]:
        """Return the recorded sums of manifests by name; none for a version of an earlier program."""
        found: dict[str, set[str]] = {}
        if self._has(CANDIDATES):
            query = sa.select(CANDIDATES.c.name, CANDIDATES.c.sha256).where(CANDIDATES.c.version == version)
            with self.connection.read("read the candidates in") as connection:
                for name, sha256 in connection.execute(query):
                    found.setdefault(name, set()).add(sha256)
        return found

    def erase(self, users: Sequence[str], items: Sequence[str]) -> None:
        """Record users and items as forgotten, by hashes of their ids; no later run reads them."""
        hashes = [(entity, hash_id(entity, each)) for entity, ids in ((USER, users), (ITEM, items)) for each in ids]
        with self.connection.write("record forgotten ids in", ERASED) as connection:
            known = {tuple(row) for row in connection.execute(sa.select(ERASED.c.entity, ERASED.c.id_sha256))}
            rows = [
                {"entity": entity, "id_sha256": sha256, "erased_at": now(connection)}
                for entity, sha256 in dict.fromkeys(hashes)
                if (entity, sha256) not in known
            ]
            if rows:
                connection.execute(sa.insert(ERASED), rows)

    def erased(self) -> Erased:
        """Return the forgotten users and items."""
        if not self._has(ERASED):
            return Erased()
        with self.connection.read("read the forgotten ids in") as connection:
            rows = connection.execute(sa.select(ERASED.c.entity, ERASED.c.id_sha256)).all()
        return Erased(*(frozenset(sha256 for entity, sha256 in rows if entity == kind) for kind in (USER, ITEM)))

    def begin_push(self, version: str, lock: PublishingLock, name: str = "candidates") -> datetime:
        """Record the start of a push; return the event timestamp of its rows, later than that of every earlier push.

        Online stores that compare timestamps (Redis) refuse a row of the same or an earlier time; the times rise even
        if the clock went backwards or the previous push was never finished.

        Raises:
            LockedError: the lock is no longer held.
        """
        with self.connection.write(f"record the push of version {version} in", PUSHES) as connection:
            lock.check(connection)
            newest = connection.scalar(sa.select(sa.func.max(PUSHES.c.pushed_at, type_=PUSHES.c.pushed_at.type)))
            live = connection.scalar(_newest_first([VERSIONS.c.updated_at]).limit(1))
            # Round to milliseconds, the precision that every online store keeps.
            earlier = [_milliseconds(time) + timedelta(milliseconds=1) for time in (newest, live) if time is not None]
            pushed_at = max([_milliseconds(now(connection)), *earlier])
            values = {"version": version, "owner": lock.owner, "pushed_at": pushed_at, "name": name}
            connection.execute(sa.insert(PUSHES).values(values))
            return pushed_at

    def pushed_since_live(self) -> list[str]:
        """Return the versions that may have rows in the feature store: the live one, and those pushed since.

        A failed push leaves rows behind that only the next push corrects.
        """
        live = self._rows(1)
        versions = [row.version for row in live]
        if self._has(PUSHES):
            query = sa.select(PUSHES.c.version).order_by(PUSHES.c.pushed_at.desc())
            if live:
                # The live version's own push is earlier than its row; every later push is after that row.
                query = query.where(PUSHES.c.pushed_at > live[0].updated_at)
            with self.connection.read("read the pushes in") as connection:
                versions += connection.scalars(query)
        return list(dict.fromkeys(versions))

    def publishing_lock(
        self, owner: str, seconds: float, wait_seconds: float = 0, run_id: str | None = None
    ) -> contextlib.AbstractContextManager[PublishingLock]:
        """Hold the publishing lock while the context lasts; see `lock.held`.

        Raises:
            LockedError: another publisher still holds it after `wait_seconds`.
        """
        return held(self.connection, owner, seconds, wait_seconds, run_id)

    def fence(self, lock: PublishingLock) -> Fence:
        """Return the data with which a task checks the lock."""
        return Fence(self._address, lock.token, self._password, self._schema)

    def lock_holder(self) -> LockHolder | None:
        """Return the holder of the publishing lock, even if the lock has expired."""
        return find_holder(self.connection)

    def free_lock(self, holder: LockHolder) -> bool:
        """Free the lock of a holder; return False if it no longer held the lock."""
        return free_lock(self.connection, holder.token)

    def _has(self, table: sa.Table) -> bool:
        if not self.connection.exists:
            return False
        with self.connection.read("read the tables of") as connection:
            return sa.inspect(connection).has_table(table.name)

    def _rows(self, limit: int | None = None, version: str | None = None) -> list[VersionRow]:
        if not self._has(VERSIONS):
            return []
        with self.connection.read("read the versions in") as connection:
            have = {column["name"] for column in sa.inspect(connection).get_columns(VERSIONS.name)}
            query = _newest_first([column for column in VERSIONS.columns if column.name in have]).limit(limit)
            if version is not None:
                query = query.where(VERSIONS.c.version == version)
            found = connection.execute(query).mappings().all()
        if version is None and _is_tie(found[:2]):
            LOGGER.warning(
                "model_version in %s has two newest rows with one updated_at, of the versions %s and %s: readers get "
                "either; publish one of them again",
                self.url,
                found[0]["version"],
                found[1]["version"],
            )
        return [_row(each) for each in found]


def _milliseconds(time: datetime) -> datetime:
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def _newest_first(columns: Iterable[sa.ColumnElement[Any]]) -> sa.Select[Any]:
    """Return the query in the order in which readers find the live version; the id only decides between equal times."""
    return sa.select(*columns).order_by(VERSIONS.c.updated_at.desc(), VERSIONS.c.id.desc())


def _is_tie(newest: Sequence[Mapping[Any, Any]]) -> bool:
    """Return whether the two newest rows have equal times and different versions, as another program may write."""
    times, versions = [{row[name] for row in newest} for name in ("updated_at", "version")]
    return len(newest) > 1 and len(times) == 1 and len(versions) > 1


def _row(found: Mapping[Any, Any]) -> VersionRow:
    texts = {name: json.loads(found[name]) if found.get(name) else None for name in ("metrics", "checks")}
    return VersionRow(**{**found, **texts})
