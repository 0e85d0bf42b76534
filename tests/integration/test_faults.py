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

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore
from feast.data_source import PushMode
from processes import Reader, Run, wait_until
from servers import PostgreSQL, Redis, SeaweedFS, environment_of

from rec_ray.config.loading import load_settings
from rec_ray.feature_store.push_targets import PushTarget, find_push_target, push_frame, read_online
from rec_ray.runs.context import open_feature_store
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.schema import ITEM_IDS, MODEL_VERSION, SCORES, USER_ID

# Minutes where nothing else runs; the machine may have much else to do.
pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.faults, pytest.mark.timeout(3600)]

STORE = "rec_ray.storage.object_store:Storage.write_bytes"
COMMIT = "rec_ray.versions.registry:VersionDatabase.publish"
SECOND_PUSH = "rec_ray.publishing.push:_Writer.__init__@user_embed_push_source"
RESERVE = "rec_ray.versions.registry:VersionDatabase.reserve"
TRAINING = {"train": {"epochs": 15, "patience": 15, "max_failures": 0, "refit": "off"}}


class Shop:
    """A project with the outside world it lives in, and what must be true of it at any time."""

    def __init__(self, project: Path, environment: Mapping[str, str]) -> None:
        self.project, self.environment = project, dict(environment)
        self.settings = load_settings(project / "rec_ray.yaml", environ=self.environment)
        self.storage, self.database = open_object_store(self.settings), open_version_database(self.settings)
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

    def recommendations(self) -> tuple[FeatureStore, PushTarget, list[str]]:
        """The feature store, where recommendations are pushed to, and the users."""
        store = open_feature_store(self.settings)
        source = self.settings.publish.recommendation_push_source
        target = find_push_target(store, source, USER_ID, [ITEM_IDS, SCORES])
        return store, target, [f"u{number}" for number in range(200)]

    def online(self) -> dict[str, tuple[str, list[str]]]:
        """What the online store answers for every user: the version and the list."""
        store, target, users = self.recommendations()
        found = read_online(store, target, users)
        answers = zip(found[target.fields[MODEL_VERSION]], found[target.fields[ITEM_IDS]], strict=True)
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
    # A publisher that was killed is waited for.
    publish = {"lock_seconds": 10, "wait_seconds": 120}
    shop = make_shop(tmp_path_factory.mktemp("faults"), make_project, tiny_tables, environment, online, publish=publish)
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


def test_a_run_that_is_killed_or_loses_its_servers_goes_on(
    shop: Shop, seaweedfs: SeaweedFS, postgresql: PostgreSQL, redis_server: Redis
) -> None:
    """One run id that meets one fault after the other, in the order of the steps; version 1 stays live to the end."""
    run_id = "second"

    def attempt(*hold: str) -> Run:
        return shop.run(run_id, hold=hold)

    def end_in(step: str, how: signal.Signals, code: int) -> None:
        with attempt() as run:
            run.wait_for(f"{step} ...")
            # It is shown before it is stored.
            wait_until(lambda: shop.status(run_id)["step"] == step, f"a status that names {step}")
            run.send(how).ended(code)

    def after(step: str, state: str) -> None:
        assert (shop.status(run_id)["step"], shop.status(run_id)["state"]) == (step, state)
        shop.check(live="1")

    # The database is away when a number is to be reserved.
    with attempt(RESERVE) as run:
        run.wait_for("HELD")
        postgresql.stop()
        said = run.release().ended(3)
    postgresql.start()
    assert "cannot reserve a version in the database postgresql://" in said
    after("reserve", "failed")

    end_in("load_features", signal.SIGKILL, -9)
    after("load_features", "running")

    end_in("training_data", signal.SIGTERM, 143)
    after("training_data", "stopped")

    # The object store does not answer for 10 seconds while checkpoints are written; then Ctrl-C.
    with attempt() as run:
        run.wait_for("train ...")
        first = checkpoint(shop, run_id)
        silent_for(seaweedfs, 10)
        wait_until(lambda: checkpoint(shop, run_id) != first, "a checkpoint after the silence")
        run.send(signal.SIGINT).ended(130)
    after("train", "stopped")

    # The object store goes away for good while checkpoints are written.
    with attempt() as run:
        said = run.wait_for("train ...").said
        assert "training_data was finished by an earlier attempt" in said
        first = checkpoint(shop, run_id)
        wait_until(lambda: checkpoint(shop, run_id) != first, "a checkpoint more")
        seaweedfs.kill()
        said = run.ended(3)
    seaweedfs.start()
    assert "Traceback" not in said
    after("train", "running")

    end_in("evaluate", signal.SIGKILL, -9)
    after("evaluate", "running")

    # The object store goes away for good in the midst of storing the model: all files but the manifest are there.
    with attempt(f"{STORE}@two-tower/2/manifest.json") as run:
        run.wait_for("HELD")
        seaweedfs.kill()
        said = run.release().ended(3)
    seaweedfs.start()
    assert f"cannot write s3://{seaweedfs.bucket}/faults/two-tower/2/manifest.json" in said
    assert "is the endpoint right and the server running?" in said
    after("model_store", "running")

    with attempt(f"{STORE}@two-tower/2/manifest.json") as run:
        run.wait_for("HELD").send(signal.SIGTERM).ended(143)
    after("model_store", "stopped")

    # It does not answer for 10 seconds in the same place, and the run goes on.
    with attempt(f"{STORE}@two-tower/2/manifest.json", f"{STORE}@candidates/pending.json") as run:
        run.wait_for("HELD")
        threading.Thread(target=silent_for, args=(seaweedfs, 10)).start()
        run.release().wait_for("HELD").send(signal.SIGKILL).ended(-9)
    after("candidates", "running")

    # The online store goes away in the midst of the push: the vectors of items are there.
    with attempt(SECOND_PUSH) as run:
        run.wait_for("HELD")
        redis_server.kill()
        said = run.release().ended(6)
    redis_server.start()
    after("update_features", "failed")
    shop.check_online("1", "2")

    # Everything is pushed, and the database is away when the version is to go live.
    with attempt(COMMIT) as run:
        run.wait_for("HELD")
        postgresql.stop()
        said = run.release().ended(3)
    postgresql.start()
    assert "cannot publish version 2 in the database postgresql://" in said
    after("update_features", "failed")

    with attempt(COMMIT) as run:
        run.wait_for("HELD").send(signal.SIGINT).ended(130)
    after("update_features", "stopped")
    shop.check_online("2")

    # The version is live, and the run is killed before it could say so.
    with attempt("rec_ray.runs.ledger:RunLedger.finish") as run:
        run.wait_for("HELD").send(signal.SIGKILL).ended(-9)
    shop.check(live="2")

    with attempt() as run:
        said = run.ended(0)
        report = run.report
    assert "update_features was finished by an earlier attempt" in said and "train ..." not in said
    assert report["version"] == "2" and not report["finished_before"]
    assert shop.status(run_id)["state"] == "done"
    assert shop.storage.list(f"runs/{run_id}/work") == [] == shop.storage.list(f"training/{run_id}")

    with attempt() as run:
        said = run.ended(0)
        assert run.report == {**report, "finished_before": True}
    assert "is finished already: nothing is done" in said and "start ..." not in said
    with shop.run(run_id, "--set", "train.epochs=1") as run:
        assert "begun with other settings: 'train.epochs' differ" in run.ended(2)
    shop.check(live="2")
    shop.check_online("2")
    # Each step was done to its end once.
    ends = [line.split(" done in")[0] for line in shop.log(run_id) if " done in" in line]
    for step in ("training_data", "train", "evaluate", "model_store", "candidates", "update_features"):
        assert ends.count(step) == 1, ends


def checkpoint(shop: Shop, run_id: str) -> str:
    """Wait for a checkpoint of a run and return the newest one's name."""
    found: list[str] = []

    def look() -> bool:
        keys = [key.split("/")[2] for key in shop.storage.list(f"training/{run_id}") if key.endswith("progress.json")]
        found[:] = sorted(keys)
        return bool(found)

    wait_until(look, "a checkpoint")
    return found[-1]


def silent_for(server: SeaweedFS, seconds: float) -> None:
    """Let a server take connections and answer none for a while."""
    assert server.pid is not None
    process = psutil.Process(server.pid)
    process.suspend()
    time.sleep(seconds)
    process.resume()


def test_rows_from_the_future_in_redis_are_found_and_nothing_goes_live(shop: Shop, redis_server: Redis) -> None:
    """Redis keeps the row with the newer time: what a machine with a wrong clock wrote would hide all that follows."""
    live = shop.database.live()
    assert live is not None
    stale(shop, datetime.now(UTC) + timedelta(days=1))
    with shop.start("publish", live) as run:
        said = run.ended(6)
    assert "returns other values than were pushed" in said
    shop.check(live)
    with contextlib.closing(redis_server.client()) as client:
        client.flushdb()
    with shop.start("publish", live) as run:
        run.ended(0)
    shop.check(live)
    shop.check_online(live)


def stale(shop: Shop, when: datetime) -> None:
    """Push other lists for all users under another time."""
    store, target, users = shop.recommendations()
    columns = {"user_id": users, "item_ids": [["old"]] * len(users), "scores": [[0.0]] * len(users)}
    store.push(target.source, push_frame(pa.table(columns), target, "0", when), to=PushMode.ONLINE)


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
    """A project in folders and SQLite, read all the while; its store is a disk of 64 MB where that can be mounted."""
    one_epoch = {"train": {"epochs": 1, "refit": "off"}, "publish": {"wait_seconds": 1}}
    shop = make_shop(tmp_path_factory.mktemp("corner"), make_project, tiny_tables, {}, **one_epoch)
    store = Path(shop.storage.root)
    store.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(store)]
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


def test_two_publishers_at_once_and_a_clock_that_goes_backwards(corner: Shop) -> None:
    # Version 1 was published with the clock a day ahead of that of both.
    with corner.run("b", clock=-86_400, hold=(COMMIT,)) as one:
        one.wait_for("HELD")
        with corner.run("c", clock=-86_400) as two:
            said = two.ended(7)
        assert "run b on" in said and "is publishing" in said
        corner.check("1")
        one.release().ended(0)
    corner.check("2")
    with corner.run("c", clock=-86_400) as two:
        said = two.ended(0)
    assert "candidates was finished by an earlier attempt" in said
    assert (one.report["version"], two.report["version"]) == ("2", "3")
    corner.check("3")
    corner.check_online("3")
    times = [row.updated_at for row in corner.database.list_versions()]
    assert times == sorted(times, reverse=True) and len(set(times)) == 3
