"""Faults that a run has to survive: real processes killed, real servers taken away, and what is true afterwards.

After each of them: no version row without complete objects and complete pushes, the live version is still served whole,
the same run id completes, and nothing is published twice differently. A second process reads the live version all the
while, and never finds one that does not load.
"""

import contextlib
import json
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from processes import Reader, Run, wait_until
from servers import PostgreSQL, Redis, SeaweedFS, environment_of

from rec_ray.config_file import load_settings
from rec_ray.world import database_of, storage_of

pytestmark = pytest.mark.integration

STORE = "rec_ray.storage:Storage.write_bytes"
COMMIT = "rec_ray.model_version:VersionDatabase.publish"
READ_BACK = "rec_ray.update_features:_read_back"
RESERVE = "rec_ray.model_version:VersionDatabase.reserve"
TRAINING = {"train": {"epochs": 40, "patience": 40}}


class Shop:
    """A project with the outside world it lives in, and what must be true of it at any time."""

    def __init__(self, project: Path, environment: Mapping[str, str]) -> None:
        self.project, self.environment = project, dict(environment)
        self.settings = load_settings(project / "rec_ray.yaml", environ=self.environment)
        self.storage, self.database = storage_of(self.settings), database_of(self.settings)
        self.published: dict[str, dict[str, Any]] = {}

    def start(self, command: str, *arguments: object, **named: Any) -> Run:
        return Run(command, "-C", self.project, *arguments, environment=self.environment, **named)

    def run(self, run_id: str, *arguments: object, **named: Any) -> Run:
        return self.start("run", "--run-id", run_id, "--json", *arguments, **named)

    def status(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.storage.read_bytes(f"runs/{run_id}/status.json"))
        return found

    def log(self, run_id: str) -> list[str]:
        return [
            json.loads(line)["message"] for line in self.storage.read_bytes(f"runs/{run_id}/log.jsonl").splitlines()
        ]

    def lists(self, version: str) -> dict[str, list[str]]:
        folder = self.storage.path(f"two-tower/{version}/candidates/recommendations")
        table = pq.read_table(folder, filesystem=self.storage.filesystem)
        return dict(zip(table["user_id"].to_pylist(), table["item_ids"].to_pylist(), strict=True))

    def online(self) -> dict[str, tuple[str, list[str]]]:
        """What the online store answers for every user: the version and the list."""
        from rec_ray.schema import ITEM_IDS, SCORES, USER_ID
        from rec_ray.update_features import find_push_target, read_online
        from rec_ray.world import feature_store_of

        store = feature_store_of(self.settings)
        source = self.settings.publish.recommendation_push_source
        target = find_push_target(store, source, USER_ID, [ITEM_IDS, SCORES])
        users = [f"u{number}" for number in range(200)]
        found = read_online(store, target, users)
        answers = zip(found[target.fields["model_version"]], found[target.fields[ITEM_IDS]], strict=True)
        return {user: (version, list(items)) for user, (version, items) in zip(users, answers, strict=True)}

    def check(self, live: str) -> None:
        """The live version is the expected one, each row is whole, and what was once published is still the same."""
        rows = self.database.list_versions()
        assert next(row.version for row in rows) == live
        assert len({row.version for row in rows}) == len(rows), "a version was published twice"
        for row in rows:
            again = {"sha256": row.sha256, "lists": self.lists(row.version)}
            assert self.published.setdefault(row.version, again) == again

    def check_online(self, *versions: str) -> None:
        """Every user has a whole list of one of these versions."""
        lists = {version: self.lists(version) for version in versions}
        for user, (version, items) in self.online().items():
            assert version in versions and items == lists[version][user], f"{user} has {items} of version {version}"


def make_shop(
    folder: Path,
    make_project: Callable[..., Path],
    tables: dict[str, pa.Table],
    environment: Mapping[str, str],
    online_store: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Shop:
    settings = {"model": {"history": "mean", "embedding_size": 16}, "candidates": {"k": 20}, **TRAINING, **sections}
    project = make_project(folder, **tables, settings=settings)
    if online_store:
        file = project / "feature_repo" / "feature_store.yaml"
        values = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**values, "online_store": dict(online_store)}))
    return Shop(project, environment)


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory,
    make_project: Callable[..., Path],
    tiny_tables: dict[str, pa.Table],
    seaweedfs: SeaweedFS,
    postgresql: PostgreSQL,
    redis_server: Redis,
) -> Iterator[Shop]:
    """A project on S3, PostgreSQL and Redis whose version 1 is live; a second process reads it all the while."""
    environment = environment_of([seaweedfs, postgresql])
    environment["REC_RAY__DATABASE__URL"] = postgresql.make_database("faults")
    environment["REC_RAY__STORAGE__URL"] = f"s3://{seaweedfs.bucket}/faults"
    online = redis_server.online_store()
    shop = make_shop(tmp_path_factory.mktemp("faults"), make_project, tiny_tables, environment, online)
    with shop.run("first") as run:
        run.ended(0)
    shop.check("1")
    reader = Reader(shop.project, environment)
    try:
        yield shop
    finally:
        seen = reader.close()
    assert [line for line in seen if "fault" in line] == []
    assert seen[-1]["polls"] > 20
    lived = [line["live"] for line in seen if "live" in line]
    assert lived == sorted(lived), "an older version came back"


def test_a_run_that_is_killed_in_each_step_goes_on_there(shop: Shop) -> None:
    run_id = "second"
    steps: list[tuple[str, tuple[str, ...], signal.Signals, str, list[str]]] = [
        # What is heard first, places to hold at, how it is killed, the step it is in, the steps finished by then.
        ("load_features ...", (), signal.SIGKILL, "load_features", []),
        ("training_data ...", (), signal.SIGTERM, "training_data", []),
        ("checkpoint", (), signal.SIGINT, "train", ["training_data"]),
        ("evaluate ...", (), signal.SIGKILL, "evaluate", ["training_data", "train"]),
        ("HELD", (f"{STORE}@two-tower/2/manifest.json",), signal.SIGTERM, "model_store", []),
        ("HELD", (f"{STORE}@two-tower/2/candidates/manifest.json",), signal.SIGKILL, "candidates", []),
        ("HELD", (COMMIT,), signal.SIGINT, "update_features", []),
    ]
    codes = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    for heard, hold, how, step, _ in steps:
        with shop.run(run_id, hold=hold) as run:
            if heard == "checkpoint":
                run.wait_for("train ...")
                checkpoint = lambda: any("progress.json" in key for key in shop.storage.list(f"training/{run_id}"))  # noqa: E731
                wait_until(checkpoint, "a checkpoint")
            else:
                run.wait_for(heard)
            run.send(how)
            said = run.ended(codes[how])
        status = shop.status(run_id)
        assert status["step"] == step, said
        assert status["state"] == ("running" if how == signal.SIGKILL else "stopped")
        shop.check(live="1")
    shop.check_online("1", "2")
    with shop.run(run_id, hold=("rec_ray.run_ledger:RunLedger.finish",)) as run:
        run.wait_for("HELD").send(signal.SIGKILL).ended(-9)
    shop.check(live="2")
    with shop.run(run_id) as run:
        said = run.ended(0)
        report = run.report
    assert "update_features was finished by an earlier attempt" in said and "train ..." not in said
    assert report["version"] == "2" and not report["finished_before"]
    shop.check(live="2")
    shop.check_online("2")
    assert shop.status(run_id)["state"] == "done" and shop.status(run_id)["attempts"] == len(steps) + 2
    assert shop.storage.list(f"runs/{run_id}/work") == [] == shop.storage.list(f"training/{run_id}")
    with shop.run(run_id) as run:
        said = run.ended(0)
        assert run.report == {**report, "finished_before": True}
    assert "is finished already: nothing is done" in said and "start ..." not in said
    with shop.run(run_id, "--set", "train.epochs=1") as run:
        assert "begun with other settings: 'train.epochs' differ" in run.ended(2)
    # Each step was done to its end once.
    ends = [line.split(" done in")[0] for line in shop.log(run_id) if " done in" in line]
    for step in ("training_data", "train", "evaluate", "model_store", "candidates"):
        assert ends.count(step) == 1, ends


def test_servers_that_go_away_and_come_back(
    shop: Shop, seaweedfs: SeaweedFS, postgresql: PostgreSQL, redis_server: Redis
) -> None:
    run_id = "third"
    before = shop.database.live()
    assert before is not None

    # The database is away when a number is to be reserved.
    with shop.run(run_id, hold=(RESERVE,)) as run:
        run.wait_for("HELD")
        postgresql.stop()
        said = run.release().ended(3)
    postgresql.start()
    assert "cannot reserve a version in the database postgresql://" in said
    status = shop.status(run_id)
    assert (status["state"], status["step"], status["exit_code"]) == ("failed", "reserve", 3)
    shop.check(before)

    # The object store goes away for good while checkpoints are written.
    with shop.run(run_id) as run:
        run.wait_for("train ...")
        wait_until(lambda: bool(shop.storage.list(f"training/{run_id}")), "a checkpoint")
        seaweedfs.kill()
        said = run.ended(3)
    seaweedfs.start()
    assert "Traceback" not in said
    shop.check(before)

    # For 10 seconds while checkpoints are written: the run goes on. Then for good while the model is stored.
    with shop.run(run_id, hold=(f"{STORE}@/manifest.json",)) as run:
        run.wait_for("train ...")
        down_for(seaweedfs, 10)
        run.wait_for("HELD")
        seaweedfs.kill()
        said = run.release().ended(3)
    seaweedfs.start()
    assert f"cannot write s3://{seaweedfs.bucket}/faults/two-tower/3/manifest.json" in said
    assert "is the endpoint right and the server running?" in said
    shop.check(before)

    # For 10 seconds while the model is stored: the run goes on. Then the online store goes away in the midst of a push.
    with shop.run(run_id, hold=(f"{STORE}@two-tower/3/manifest.json", READ_BACK)) as run:
        run.wait_for("HELD")
        threading.Timer(10, seaweedfs.start).start()
        seaweedfs.kill()
        run.release().wait_for("HELD")
        redis_server.kill()
        said = run.release().ended(6)
    redis_server.start()
    assert "`rec-ray publish 3` again" in said
    shop.check(before)
    shop.check_online(before, "3")

    # The database is away when the version is to go live.
    with shop.run(run_id, hold=(COMMIT,)) as run:
        run.wait_for("HELD")
        postgresql.kill()
        said = run.release().ended(3)
    postgresql.start()
    assert "cannot publish version 3 in the database postgresql://" in said
    assert shop.status(run_id)["step"] == "update_features"
    shop.check(before)

    with shop.run(run_id) as run:
        run.ended(0)
        assert run.report["version"] == "3"
    shop.check("3")
    shop.check_online("3")


def down_for(server: SeaweedFS, seconds: float) -> None:
    """Take a server away for a while."""
    server.kill()
    time.sleep(seconds)
    server.start()


def test_rows_from_the_future_in_redis_are_found_and_nothing_goes_live(shop: Shop, redis_server: Redis) -> None:
    """Redis keeps the row with the newer time: what a machine with a wrong clock wrote would hide all that follows."""
    live = shop.database.live()
    assert live is not None
    stale(shop, datetime.now(UTC) + timedelta(days=1))
    with shop.start("publish", live) as run:
        said = run.ended(6)
    assert "answers otherwise than was pushed" in said
    shop.check(live)
    with contextlib.closing(redis_server.client()) as client:
        client.flushdb()
    with shop.start("publish", live) as run:
        run.ended(0)
    shop.check(live)
    shop.check_online(live)


def stale(shop: Shop, when: datetime) -> None:
    """Push other lists for all users under another time."""
    from feast.data_source import PushMode

    from rec_ray.world import feature_store_of

    store, users = feature_store_of(shop.settings), [f"u{number}" for number in range(200)]
    rows = {"user_id": users, "top_k_item_ids": [["old"]] * 200, "top_k_scores": [[0.0]] * 200}
    frame = pd.DataFrame({**rows, "model_version": "0", "event_timestamp": when})
    store.push(shop.settings.publish.recommendation_push_source, frame, to=PushMode.ONLINE)


def test_no_secret_is_in_any_log_status_or_error(
    shop: Shop, seaweedfs: SeaweedFS, postgresql: PostgreSQL, redis_server: Redis
) -> None:
    """What all runs of this module said, with the faults they met, and left in the store and in Ray's folders."""
    wrong = {**shop.environment, "REC_RAY__STORAGE__SECRET_KEY": f"no{seaweedfs.secret_key}"}
    with Run("run", "-C", shop.project, environment=wrong) as run:
        run.ended(3)
    wrong = {**shop.environment, "REC_RAY__DATABASE__PASSWORD": f"no{postgresql.password}"}
    with Run("run", "-C", shop.project, "--run-id", "refused", environment=wrong) as run:
        run.ended(3)
    texts = {f"process {pid}": said for pid, said in Run.everything().items()}
    assert len(texts) >= 3
    for key in shop.storage.list():
        if key.endswith((".json", ".jsonl")):
            texts[key] = shop.storage.read_bytes(key).decode()
    assert "runs/refused/status.json" in texts
    for pid in Run.everything():
        for path in Path("/tmp/ray").glob(f"session_*_{pid}/logs/**/*"):
            if path.is_file():
                texts[str(path)] = path.read_text(errors="replace")
    secrets = {server.name: server.password for server in (postgresql, redis_server)}
    secrets |= {"S3 secret key": seaweedfs.secret_key, "S3 access key": seaweedfs.access_key}
    for name, secret in secrets.items():
        assert [where for where, text in texts.items() if secret in text] == [], f"{name} is shown"


@pytest.fixture(scope="module")
def corner(
    tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path], tiny_tables: dict[str, pa.Table]
) -> Iterator[Shop]:
    """A project in folders and SQLite, read all the while; its store is a disk of 32 MB where that can be mounted."""
    one_epoch = {"train": {"epochs": 1}, "publish": {"wait_seconds": 1}}
    shop = make_shop(tmp_path_factory.mktemp("corner"), make_project, tiny_tables, {}, **one_epoch)
    store = Path(shop.storage.root)
    store.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(store)]
    subprocess.run(mounting, capture_output=True, check=False)
    reader = Reader(shop.project)
    try:
        yield shop
    finally:
        seen = reader.close()
        if store.is_mount():
            subprocess.run(["umount", str(store)], check=True)
    assert [line for line in seen if "fault" in line] == []


def test_a_damaged_file_and_a_full_disk(corner: Shop) -> None:
    data = corner.project / "feature_repo" / "data" / "interactions.parquet"
    whole = data.read_bytes()
    data.write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])
    with corner.run("a") as run:
        assert "interactions.parquet is damaged" in run.ended(4)
    assert "interactions.parquet is damaged" in corner.status("a")["error"]
    data.write_bytes(whole)
    with corner.run("a", hold=(f"{STORE}@two-tower/1/manifest.json",)) as run:
        run.wait_for("HELD")
        with full_disk(corner, run):
            said = run.release().ended(3)
    assert "two-tower/1/manifest.json" in said
    assert corner.database.live() is None
    with corner.run("a") as run:
        assert "train was finished by an earlier attempt" in run.ended(0)
    corner.check("1")
    corner.check_online("1")


@contextlib.contextmanager
def full_disk(shop: Shop, run: Run) -> Iterator[None]:
    """Let the store be full: really, where it is a small disk; else no file of the process may grow, which is alike."""
    store = Path(shop.storage.root)
    if not store.is_mount():
        psutil.Process(run.process.pid).rlimit(psutil.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        yield
        return
    filler = store / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"\0" * 4096)
    yield
    assert "the disk is full; make room" in run.said
    filler.unlink()


def test_a_clock_that_goes_backwards(corner: Shop) -> None:
    with corner.run("b", clock=-86_400) as run:
        run.ended(0)
        assert run.report["version"] == "2"
    corner.check("2")
    corner.check_online("2")
    second, first = corner.database.list_versions()[:2]
    assert second.updated_at > first.updated_at


def test_two_runs_and_two_publishers_at_once(corner: Shop) -> None:
    with corner.run("c", hold=(COMMIT,)) as one:
        with corner.run("d") as two:
            one.wait_for("HELD")
            said = two.ended(7)
        assert "run c on" in said and "is publishing" in said
        corner.check("2")
        one.release().ended(0)
    with corner.run("d") as two:
        said = two.ended(0)
        assert "train ..." not in said
    assert {one.report["version"], two.report["version"]} == {"3", "4"}
    corner.check(two.report["version"])
    corner.check_online(two.report["version"])
