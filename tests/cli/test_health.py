"""Silent failures replayed: each leaves what it leaves in database and store, and `rec-ray check` names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rec_ray.candidate_store.manifest import CandidatesManifest, Part, write_manifest
from rec_ray.cli.health import examine_health, parse_age
from rec_ray.cli.main import main
from rec_ray.config import Settings
from rec_ray.errors import ConfigError
from rec_ray.retrieval.profiles.data_profile import DataProfile
from rec_ray.runs.check_records import write_profile
from rec_ray.runs.status import LOST, RunStatus
from rec_ray.runs.step_progress import watch_progress
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.step_events import StepStarted
from rec_ray.storage.model_store import candidates_folder
from rec_ray.storage.object_store import open_storage
from rec_ray.versions.lock import PublishingLock
from rec_ray.versions.registry import VersionRow

HOUR = timedelta(hours=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = {"storage": {"url": str(tmp_path / "store")}, "database": {"url": f"sqlite:///{tmp_path / 'v.db'}"}}
    made = Settings.model_validate(given)
    open_version_database(made).migrate()
    return made


def leave_status(settings: Settings, run_id: str, **values: Any) -> None:
    status = {"state": "done", "exit_code": None, "error": None, "step": "update_features", "heartbeat_seconds": 60.0}
    status |= {"updated_at": datetime.now(UTC).isoformat(), "counts": {}, "version": None, **values}
    storage = open_object_store(settings)
    storage.write_bytes(f"runs/{run_id}/status.json", json.dumps(status).encode())
    storage.write_bytes("runs/newest.json", json.dumps({"run_id": run_id}).encode())


def good_night(settings: Settings, run_id: str, *, users: int = 100, newest: timedelta = HOUR) -> str:
    """Leave what a published run leaves; return its version."""
    storage, database = open_object_store(settings), open_version_database(settings)
    version = database.reserve(run_id)
    now = datetime.now(UTC)
    write_profile(storage, version, DataProfile(as_of=int(now.timestamp()), newest=int((now - newest).timestamp())))
    full = Part("part-0.parquet", users, 1, "0" * 64)
    parts = {"user_embeddings": (full,), "recommendations": (full,), "item_embeddings": ()}
    manifest = CandidatesManifest(version, parts, users=users)
    write_manifest(storage, candidates_folder(version), manifest)
    with database.publishing_lock("run", 900) as lock:
        database.begin_push(version, lock)
        database.publish(VersionRow(version, run_id), lock)
    leave_status(settings, run_id, version=version)
    return version


def faults_of(settings: Settings, later: timedelta = timedelta(0)) -> list[str]:
    return examine_health(settings, probe=True, now=datetime.now(UTC) + later).faults


def test_thirty_good_nights_have_no_fault(settings: Settings) -> None:
    for night in range(30):
        good_night(settings, f"night-{night}", users=100 + night)
        assert faults_of(settings) == []
        assert faults_of(settings, 24 * HOUR) == [], "in the next night, before its run"
    health = examine_health(settings)
    assert (health.live, health.lists, health.lists_before) == ("30", 129, 128)
    assert (health.run_state, health.lock, health.unfinished) == ("done", None, [])
    assert health.newest_event_age == pytest.approx(1, abs=0.1)


def never_admitted(settings: Settings) -> timedelta:
    return 48 * HOUR


def head_killed(settings: Settings) -> timedelta:
    silent = (datetime.now(UTC) - HOUR).isoformat()
    leave_status(settings, "night", state="running", step="train", updated_at=silent)
    return timedelta(0)


def ends_with(code: int, error: str) -> Callable[[Settings], timedelta]:
    def fail(settings: Settings) -> timedelta:
        leave_status(settings, "night", state="failed", exit_code=code, error=error)
        return timedelta(0)

    return fail


def refused(settings: Settings) -> timedelta:
    database = open_version_database(settings)
    version = database.reserve("night")
    database.mark(version, "refused", reason="50% of the users are still there")
    leave_status(settings, "night", state="failed", exit_code=5, error="long", version=version)
    return timedelta(0)


def lock_stuck(settings: Settings) -> timedelta:
    # The publisher is gone: nothing renews or releases the lock.
    PublishingLock(open_version_database(settings).connection, "run night on node-3", 900).acquire()
    return HOUR


def store_down(settings: Settings) -> timedelta:
    shutil.rmtree(settings.storage.url)
    Path(settings.storage.url).write_text("no folder")
    return timedelta(0)


def database_down(settings: Settings) -> timedelta:
    Path(settings.database.url.removeprefix("sqlite:///")).write_bytes(b"no database at all")
    return timedelta(0)


def no_new_data(settings: Settings) -> timedelta:
    good_night(settings, "night", newest=50 * HOUR)
    return timedelta(0)


def clock_wrong(settings: Settings) -> timedelta:
    return -3 * HOUR


def disk_full(settings: Settings) -> timedelta:
    # Root may write into any folder, so a file stands in the way of the probe.
    return store_down(settings)


def lists_emptied(settings: Settings) -> timedelta:
    good_night(settings, "night", users=0)
    return timedelta(0)


def partial_push(settings: Settings) -> timedelta:
    database = open_version_database(settings)
    version = database.reserve("night")
    with database.publishing_lock("run", 900) as lock:
        database.begin_push(version, lock)
    return timedelta(0)


FAILURES: dict[str, tuple[Callable[[Settings], timedelta], str]] = {
    "never admitted or suspended": (never_admitted, "has been live for 48 h, more than 26: no run was published since"),
    "head killed": (head_killed, "run night was killed in train: its last heartbeat is of"),
    "exit 3": (ends_with(3, "the store is down"), "run night failed in update_features with exit code 3: the store"),
    "exit 5": (refused, "exit code 5: 50% of the users are still there"),
    "exit 6": (ends_with(6, "7 of 9 rows"), "exit code 6: 7 of 9 rows"),
    "exit 7": (ends_with(7, "another run publishes"), "exit code 7: another run publishes"),
    "stopped": (lambda settings: leave_status(settings, "night", state="stopped") or HOUR, "was stopped"),
    "lock stuck": (lock_stuck, "the publishing lock of run night on node-3 ran out and was not released"),
    "store down": (store_down, "store"),
    "database down": (database_down, "database"),
    "no new data": (no_new_data, "the newest event of version 2 is 50 h old, more than 26: no new data arrive"),
    "clock wrong": (clock_wrong, "became live 3.0 h in the future: a clock is wrong"),
    "disk full": (disk_full, "store"),
    "lists emptied": (lists_emptied, "no user has a list in version 2"),
    "partial push": (partial_push, "version 2 was pushed in part and is not live; run: rec-ray publish 2"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_silent_failure_is_noticed(settings: Settings, name: str) -> None:
    fail, said = FAILURES[name]
    good_night(settings, "before")
    later = fail(settings)
    faults = faults_of(settings, later)
    assert any(said in fault for fault in faults), faults


def test_fewer_lists_are_noticed(settings: Settings) -> None:
    good_night(settings, "before")
    good_night(settings, "night", users=79)
    assert faults_of(settings) == ["version 2 has lists for 79 users, version 1 had 100"]


def test_the_command_ends_with_8_and_the_reason(settings: Settings, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "rec_ray.yaml").write_text(
        f"storage:\n  url: {settings.storage.url}\ndatabase:\n  url: {settings.database.url}\n"
    )
    own = ["-C", str(tmp_path), "--no-online"]
    assert main(["check", *own]) == 8
    assert "FAULT no version is live; run: rec-ray run" in capsys.readouterr().out
    good_night(settings, "night")
    assert main(["check", *own, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["exit_code"], answer["live"], answer["faults"]) == (0, "1", [])
    assert main(["check", *own, "--max-age", "1m"]) == 8
    assert main(["check", *own, "--max-age", "soon"]) == 2
    assert main(["status", *own[:2], "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "done"
    assert main(["status", "night", *own[:2]]) == 0
    assert "update_features" in capsys.readouterr().out
    assert main(["status", "other", *own[:2]]) == 4


def test_ages_are_read_in_hours() -> None:
    assert (parse_age("26h"), parse_age("2d"), parse_age("90m")) == (26, 48, 1.5)
    with pytest.raises(ConfigError, match="--max-age 26 is no age"):
        parse_age("26")


def test_a_heartbeat_tells_the_progress_and_its_end_makes_the_run_lost(settings: Settings, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "store"))
    status = RunStatus(storage, "runs/night", run_id="night", command="run", heartbeat=0.02)
    status.begin()
    status.record_step(StepStarted("train", {"version": "1"}))
    read: Callable[[], Any] = lambda: json.loads(storage.read_bytes("runs/night/status.json"))  # noqa: E731
    with watch_progress("epochs", lambda: (4, 10)):
        deadline = datetime.now(UTC) + timedelta(seconds=10)
        while read()["progress"] is None and datetime.now(UTC) < deadline:
            pass
        found = read()
    assert (found["step"], found["state"]) == ("train", "running")
    assert (found["progress"]["done"], found["progress"]["share"]) == (4, 0.4)
    assert found["progress"]["seconds_left"] >= 0
    # Killed: the thread ends without a word, as a process does.
    status._ended.set()
    status._beating.join()
    assert examine_health(settings, now=datetime.now(UTC) + timedelta(seconds=60)).run_state == LOST


def test_a_reason_is_kept_with_the_refused_number(settings: Settings) -> None:
    good_night(settings, "before")
    refused(settings)
    health = examine_health(settings)
    assert health.refused == {"2": "50% of the users are still there"}
    engine = sa.create_engine(settings.database.url)
    with engine.connect() as connection:
        found = connection.execute(
            sa.text("SELECT state, reason FROM model_version_reservation ORDER BY version")
        ).all()
    assert [tuple(row) for row in found] == [("published", None), ("refused", "50% of the users are still there")]
