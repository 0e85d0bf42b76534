"""Faults that a run has to survive: real processes killed, real servers taken away, and what is true afterwards.

After each of them: no version row without complete objects and complete pushes, the live version is still served whole,
the same run id completes, and nothing is published twice differently. A second process reads the live version all the
while, and never finds one that does not load.
"""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
