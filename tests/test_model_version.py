"""Versions on SQLite: numbers, the commit, the live version, and the publishing lock, with real processes."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rec_ray.errors import ConfigError, DataError, LockedError, UnavailableError
from rec_ray.model_version import VersionDatabase, VersionRow

READERS_QUERY = "SELECT version FROM model_version ORDER BY updated_at DESC LIMIT 1"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "versions.db"


@pytest.fixture
def database(file: Path) -> VersionDatabase:
    return VersionDatabase(f"sqlite:///{file}")


def sql(file: Path, statement: str, *values: object) -> list[tuple]:
    with sqlite3.connect(file) as connection:
        found = connection.execute(statement, values).fetchall()
    connection.close()
    return found


def test_a_new_database_has_no_versions_and_is_not_made_by_reading(database: VersionDatabase, file: Path) -> None:
    assert database.live() is None
    assert database.list_versions() == []
    assert database.get("1") is None
    assert not file.exists()


def test_numbers_count_up_and_a_run_keeps_its_own(database: VersionDatabase) -> None:
    assert [database.reserve(run) for run in ("a", "b", "a", "c", "b")] == ["1", "2", "1", "3", "2"]
    assert database.live() is None, "a reserved number is no version"


def test_numbers_are_above_those_of_an_existing_table(database: VersionDatabase, file: Path) -> None:
    sql(file, "CREATE TABLE model_version (id INTEGER PRIMARY KEY, version VARCHAR(50), updated_at TIMESTAMP)")
    sql(file, "INSERT INTO model_version (version, updated_at) VALUES ('7', CURRENT_TIMESTAMP)")
    sql(file, "INSERT INTO model_version (version, updated_at) VALUES ('v8-beta', '2020-01-01 00:00:00')")
    assert database.live() == "7", "reading needs no migration"
    assert [row.version for row in database.list_versions()] == ["7", "v8-beta"]
    assert database.reserve("run") == "8"
    columns = {row[1] for row in sql(file, "PRAGMA table_info(model_version)")}
    assert {"id", "version", "updated_at", "run_id", "sha256", "metrics", "parent"} <= columns
    assert database.publish(VersionRow("8")).parent == "7"
    assert sql(file, READERS_QUERY) == [("8",)]
    assert database.get("v8-beta") == VersionRow("v8-beta", updated_at=datetime(2020, 1, 1, tzinfo=UTC), id=2)


def test_migrating_twice_changes_nothing(database: VersionDatabase, file: Path) -> None:
    database.migrate()
    schema = sql(file, "SELECT name, sql FROM sqlite_master ORDER BY name")
    VersionDatabase(f"sqlite:///{file}").migrate()
    assert sql(file, "SELECT name, sql FROM sqlite_master ORDER BY name") == schema


def _reserve(url: str, runs: list[str], ready: object, go: object, found: object) -> None:
    database = VersionDatabase(url)
    ready.release()
    go.wait()
    found.put([database.reserve(run) for run in runs])


def test_two_processes_reserving_at_once_never_share_a_number(file: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go, found = context.Semaphore(0), context.Event(), context.Queue()
    names = ([f"a{i}" for i in range(25)], [f"b{i}" for i in range(25)])
    runs = [context.Process(target=_reserve, args=(f"sqlite:///{file}", n, ready, go, found)) for n in names]
    for run in runs:
        run.start()
    for _ in runs:
        assert ready.acquire(timeout=60)
    go.set()  # The tables do not exist yet: both processes make them, too.
    numbers = [*found.get(timeout=60), *found.get(timeout=60)]
    for run in runs:
        run.join(timeout=60)
        assert run.exitcode == 0
    assert sorted(int(number) for number in numbers) == list(range(1, 51))


def test_a_published_row_comes_back_whole(database: VersionDatabase, file: Path) -> None:
    given = VersionRow(
        version=database.reserve("run"),
        run_id="run",
        artifact_uri="s3://shop/two-tower/1",
        sha256="ab" * 32,
        metrics={"model": {"recall@10": 0.25, "coverage": float("nan")}},
        settings_hash="cd" * 32,
        data_from=datetime(2024, 1, 1, tzinfo=UTC),
        data_to=datetime(2024, 6, 1, 12, 30, tzinfo=UTC),
    )
    before = datetime.now(UTC)
    published = database.publish(given)
    assert published.updated_at is not None and before <= published.updated_at <= datetime.now(UTC)
    found = database.get("1")
    assert found is not None
    assert found.metrics == {"model": {"recall@10": 0.25, "coverage": None}}
    assert found.data_to == given.data_to and found.updated_at == published.updated_at and found.id == published.id
    assert sql(file, "SELECT state FROM model_version_reservation") == [("published",)]


def test_the_newest_row_is_live_and_knows_its_parent(database: VersionDatabase, file: Path) -> None:
    for version in ("1", "2", "3"):
        database.publish(VersionRow(version, sha256=version))
    assert database.live() == "3"
    assert database.publish(VersionRow("1", run_id="rollback", sha256="1")).parent == "3"
    assert database.live() == "1"
    assert [row.version for row in database.list_versions()] == ["1", "3", "2", "1"]
    assert sql(file, READERS_QUERY) == [("1",)]


def test_a_repeated_commit_is_one_row(database: VersionDatabase) -> None:
    row = VersionRow("1", run_id="run", sha256="aa")
    assert database.publish(row) == database.publish(row)
    assert len(database.list_versions()) == 1


def test_a_version_never_changes_its_content(database: VersionDatabase) -> None:
    database.publish(VersionRow("1", sha256="aa"))
    database.publish(VersionRow("2", sha256="bb"))
    with pytest.raises(DataError, match="version 1 was published with the checksum aa, now it has cc"):
        database.publish(VersionRow("1", sha256="cc"))
    assert database.live() == "2"


def test_a_clock_that_goes_backwards_does_not_hide_a_version(database: VersionDatabase, file: Path) -> None:
    database.publish(VersionRow("1"))
    ahead = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=400)
    sql(file, "INSERT INTO model_version (version, updated_at) VALUES ('2', ?)", ahead.isoformat(" "))
    assert database.live() == "2"
    published = database.publish(VersionRow("3"))
    assert published.updated_at == ahead.replace(tzinfo=UTC) + timedelta(microseconds=1)
    assert sql(file, READERS_QUERY) == [("3",)]


def test_a_row_that_would_stay_live_for_ever_is_named(database: VersionDatabase, file: Path) -> None:
    database.migrate()
    today = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00")  # "T" sorts after the blank that SQLAlchemy writes.
    sql(file, "INSERT INTO model_version (version, updated_at) VALUES ('1', ?)", today)
    with pytest.raises(DataError, match="cannot be ordered"):
        database.publish(VersionRow("2"))
    assert sql(file, "SELECT version FROM model_version") == [("1",)], "nothing was committed"
    sql(file, "UPDATE model_version SET updated_at = 'yesterday'")
    with pytest.raises(DataError, match="yesterday"):
        database.list_versions()


@pytest.mark.parametrize(
    "row",
    [VersionRow(""), VersionRow("1" * 51), VersionRow("1", data_to=datetime(2024, 1, 1))],
    ids=["empty", "too long", "no time zone"],
)
def test_a_row_that_the_table_cannot_hold_is_refused(database: VersionDatabase, row: VersionRow) -> None:
    with pytest.raises(DataError):
        database.publish(row)
    assert database.live() is None


def test_values_are_parameters_not_statements(database: VersionDatabase, file: Path) -> None:
    evil = "x'); DROP TABLE model_version; --"
    database.reserve(evil)
    database.publish(VersionRow(evil, run_id=evil))
    assert sql(file, READERS_QUERY) == [(evil,)]


@pytest.mark.parametrize("run_id", ["", "x" * 201])
def test_a_run_id_has_a_length(database: VersionDatabase, run_id: str) -> None:
    with pytest.raises(ConfigError, match="run id"):
        database.reserve(run_id)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:hunter2@host/db", "REC_RAY__DATABASE__PASSWORD"),
        ("postgresql://me@host/db?password=hunter2", "REC_RAY__DATABASE__PASSWORD"),
        ("mysql://me@host/db", "known are sqlite and postgresql"),
        ("versions.db", "cannot be read"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://", "names no file"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        VersionDatabase(url)
    assert "hunter2" not in str(raised.value)


def test_an_unreachable_database_is_named(tmp_path: Path) -> None:
    database = VersionDatabase(f"sqlite:///{tmp_path}/no/folder/versions.db", password="hunter2")
    with pytest.raises(UnavailableError, match=r"no/folder/versions\.db.*unable to open"):
        database.reserve("run")
    (tmp_path / "text.db").write_text("this is no database at all\n" * 100)
    with pytest.raises(UnavailableError, match=r"text\.db.*not a database"):
        VersionDatabase(f"sqlite:///{tmp_path}/text.db").live()


def test_one_publisher_at_a_time(database: VersionDatabase, file: Path) -> None:
    other = VersionDatabase(f"sqlite:///{file}")
    with database.publishing_lock("run a on host x", seconds=60) as lock:
        said = r"run a on host x is publishing; its lock runs out at \d{4}-"
        with pytest.raises(LockedError, match=said) as raised, other.publishing_lock("run b", seconds=60):
            pass
        assert raised.value.exit_code == 7
        database.publish(VersionRow("1"), lock)
    with other.publishing_lock("run b", seconds=60):
        pass
    with pytest.raises(ZeroDivisionError), database.publishing_lock("run c", seconds=60):
        _ = 1 / 0
    assert sql(file, "SELECT * FROM publishing_lock") == [], "released at the end, also after an error"


def test_a_held_lock_is_renewed(database: VersionDatabase, file: Path) -> None:
    with database.publishing_lock("slow", seconds=0.9):
        time.sleep(1.5)
        with pytest.raises(LockedError), VersionDatabase(f"sqlite:///{file}").publishing_lock("other", seconds=1):
            pass


def test_who_lost_the_lock_cannot_commit(database: VersionDatabase, file: Path) -> None:
    with database.publishing_lock("asleep", seconds=60) as lock:
        sql(file, "UPDATE publishing_lock SET expires_at = '2020-01-01 00:00:00'")
        lock.check()  # Run out, but nobody wanted it.
        with VersionDatabase(f"sqlite:///{file}").publishing_lock("awake", seconds=60):
            with pytest.raises(LockedError, match="of asleep was lost, awake took it over"):
                database.publish(VersionRow("1"), lock)
            lock.release()
            assert sql(file, "SELECT owner FROM publishing_lock") == [("awake",)], "only its own lock is released"
    assert database.live() is None


def test_the_lock_of_a_killed_process_runs_out(database: VersionDatabase, file: Path) -> None:
    program = (
        "import sys, time\nfrom rec_ray.model_version import VersionDatabase\n"
        "with VersionDatabase(sys.argv[1]).publishing_lock('doomed', 2):\n    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", program, f"sqlite:///{file}"], stdout=subprocess.PIPE, text=True, cwd=root
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        time.sleep(2.5)  # Longer than the lock lasts without renewal.
        os.kill(holder.pid, signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(LockedError, match="doomed"), database.publishing_lock("next", seconds=5):
        pass
    while True:
        try:
            with database.publishing_lock("next", seconds=5):
                break
        except LockedError:
            assert time.monotonic() - killed < 10
            time.sleep(0.1)
    assert time.monotonic() - killed < 6
