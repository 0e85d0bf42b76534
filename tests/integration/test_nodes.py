"""A cluster of several nodes with own networks: jobs of the manifest lose nodes, networks and drivers, and go on."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY_START, change_settings
from manifests import ROOT, the
from nodes import BIN, RayNodes, why_not
from servers import Redis

from rec_ray.config_file import load_settings
from rec_ray.push_targets import find_push_target, read_online
from rec_ray.schema import ITEM_IDS, MODEL_VERSION, SCORES, USER_ID
from rec_ray.world import feature_store_of

REASON = why_not()
CPUS = 3
"""Of a worker: two for a training worker, one for the data that feeds it."""
EPOCHS, MORE_EPOCHS = 12, 40
"""Of a training; the larger number takes longer than a node to start."""
MANY = 20_000
"""Users of the project whose candidates several nodes compute."""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


def manifest_environment() -> dict[str, str]:
    """Return what the manifest sets for every pod, but for the names of users and secrets."""
    job = the("production", "RayJob")
    container = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {
        each["name"]: each["value"] for each in container["env"] if each["name"].startswith("RAY_") and "value" in each
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with RayNodes(manifest_environment()) as nodes:
        yield nodes


@pytest.fixture
def project(tmp_path: Path, make_project: Callable[..., Path], tiny_tables: dict[str, Any]) -> Path:
    """A project that trains on two nodes for a while."""
    folder = make_project(tmp_path, **tiny_tables, settings={"model": {"history": "mean", "embedding_size": 16}})
    change_settings(
        folder,
        {
            "train": {"num_workers": 2, "cpus_per_worker": 2, "epochs": EPOCHS, "patience": EPOCHS, "refit": "off"},
            "candidates": {"k": 20},
            "ray": {"threads": 1},
        },
    )
    return folder


class Job:
    """A command of the project, submitted as the manifest does it, and what it leaves in the store."""

    def __init__(
        self, cluster: RayNodes, project: Path, run_id: str, letters: str, command: Sequence[str] = ()
    ) -> None:
        """letters: what KubeRay puts behind the name of an attempt. command: instead of the manifest's own."""
        self.cluster, self.id = cluster, f"{run_id}-{letters}"
        self.store = project / "store"
        self.folder = self.store / "runs" / run_id
        self.trained = self.store / "training" / run_id
        entrypoint = the("production", "RayJob")["spec"]["entrypoint"]
        for there, here in (("/app", ROOT), ("/etc/rec_ray", project)):
            assert f"{there}/" in entrypoint
            entrypoint = entrypoint.replace(f"{there}/", f"{here}/")
        if command:
            entrypoint = " ".join([*entrypoint.split(" run ")[0].split(), *command, "-C", str(project)])
        environment = json.dumps({"env_vars": {"RAY_CLUSTER_NAME": self.id}})
        self.submitted = time.monotonic()
        words = ["submit", "--no-wait", "--submission-id", self.id, "--runtime-env-json", environment, "--"]
        self.ray(*words, *entrypoint.split())

    def ray(self, *words: str) -> str:
        done = subprocess.run(
            [str(BIN / "ray"), "job", *words],
            env={**self.cluster.environment, "RAY_ADDRESS": self.cluster.address},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self) -> str:
        return str(self.cluster.ask(f"/api/jobs/{self.id}/logs")["logs"])

    def ended(self) -> str:
        """Return how the job ended, or an empty text while it runs."""
        status = self.cluster.ask(f"/api/jobs/{self.id}")["status"]
        return str(status) if status in ("SUCCEEDED", "FAILED", "STOPPED") else ""

    def wait(self, until: Callable[[], bool], what: str, seconds: float = 400, every: float = 0.5) -> float:
        """Wait until something is so, and return the seconds since the job was submitted."""
        deadline, asked = time.monotonic() + seconds, 0.0
        while not until():
            if time.monotonic() > asked + 1:
                asked = time.monotonic()
                ended = self.ended()
                assert not ended or until(), f"the job ended ({ended}) before {what}:\n{self.log()[-6000:]}"
            assert time.monotonic() < deadline, f"no {what} within {seconds} s:\n{self.log()[-6000:]}"
            time.sleep(every)
        return time.monotonic() - self.submitted

    def finish(self, how: str = "SUCCEEDED", seconds: float = 400) -> str:
        """Wait for the end, check how it came and return the log."""
        deadline = time.monotonic() + seconds
        while not (end := self.ended()):
            assert time.monotonic() < deadline, self.log()[-6000:]
            time.sleep(1)
        log = self.log()
        assert end == how, log[-6000:]
        return log

    def checkpoints(self) -> set[str]:
        return {path.name for path in self.trained.glob("checkpoint_*") if (path / "progress.json").is_file()}

    def epochs(self) -> int:
        """Return how many epochs the newest checkpoint knows of."""
        newest = [json.loads((self.trained / name / "progress.json").read_text()) for name in self.checkpoints()]
        return max((len(progress["epochs"]) for progress in newest), default=0)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return found

    def training_nodes(self) -> list[str]:
        """Return the node of each training worker."""
        actors = self.cluster.state("actors")
        return [
            actor["node_id"]
            for actor in actors
            if actor["class_name"] == "RayTrainWorker" and actor["state"] == "ALIVE"
        ]


def check_published(cluster: RayNodes, project: Path, run_id: str, epochs: int = EPOCHS) -> None:
    """One version is live, of this run, which learned each epoch once."""
    listed = subprocess.run(
        [str(BIN / "rec-ray"), "versions", "--json", "-C", str(project)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = json.loads(listed.stdout)["versions"]
    assert (row["state"], row["version"], row["run_id"]) == ("live", "1", run_id)
    model = json.loads((project / "store" / "two-tower" / "1" / "metadata.json").read_text())
    assert [epoch["epoch"] for epoch in model["epochs"]] == list(range(1, epochs + 1)), "no epoch twice, none left out"
    # Nine of ten events stay within one of four groups: what has learned anything is far above chance.
    assert model["metrics"]["model"]["recall@20"] > 2 * model["metrics"]["popularity"]["recall@20"]


def test_a_new_node_takes_part_and_a_killed_driver_is_followed_by_another(
    cluster: RayNodes, project: Path, record_property: Callable[[str, object], None]
) -> None:
    cluster.have_workers(1, CPUS)
    more = {"num_workers": [1, 4], "resize_seconds": 5, "epochs": MORE_EPOCHS, "patience": MORE_EPOCHS}
    change_settings(project, {"train": more})
    job = Job(cluster, project, "growing", "aaaaa")
    first = job.wait(lambda: bool(job.checkpoints()), "the first epoch")
    record_property("seconds from submitting to the first epoch", round(first, 1))
    assert len(job.training_nodes()) == 1, "there is room for one worker of two CPUs"

    cluster.add_worker(CPUS)
    job.wait(lambda: len(set(job.training_nodes())) == 2, "a worker on the new node")
    (driver,) = cluster.nodes[0].find("/rec-ray run ")
    os.kill(driver, signal.SIGKILL)
    job.finish("FAILED")

    again = Job(cluster, project, "growing", "bbbbb")
    log = again.finish()
    check_published(cluster, project, "growing", MORE_EPOCHS)
    assert "training_data was finished by an earlier attempt" in log
    assert again.status()["state"] == "done"
    assert again.status()["attempts"] == 2


def test_two_nodes_train_and_another_takes_the_place_of_one_that_is_lost(
    cluster: RayNodes, project: Path, record_property: Callable[[str, object], None]
) -> None:
    cluster.have_workers(2, CPUS)
    job = Job(cluster, project, "night", "aaaaa")
    job.wait(lambda: bool(job.checkpoints()), "the first epoch")
    assert len(set(job.training_nodes())) == 2
    before = job.epochs()

    killed = time.monotonic()
    cluster.nodes[-1].kill()
    cluster.add_worker(CPUS)
    job.wait(lambda: job.epochs() > before, "an epoch after the loss")
    record_property("seconds from a killed node to the next epoch", round(time.monotonic() - killed, 1))

    job.finish()
    check_published(cluster, project, "night")
    assert job.status()["attempts"] == 1


def test_a_node_without_network_for_half_a_minute_costs_no_run(cluster: RayNodes, project: Path) -> None:
    cluster.have_workers(2, CPUS)
    job = Job(cluster, project, "cut", "aaaaa")
    job.wait(lambda: bool(job.checkpoints()), "the first epoch")
    cluster.nodes[-1].cut_off()
    time.sleep(30)
    cluster.nodes[-1].join()
    while not job.ended():
        # Ray may give the node up, now or later; then it ends by itself, and what deploys nodes starts another.
        cluster.have_workers(2, CPUS)
        time.sleep(1)

    job.finish()
    check_published(cluster, project, "cut")


def test_a_stopped_job_leaves_in_order_and_the_same_run_goes_on(cluster: RayNodes, project: Path) -> None:
    cluster.have_workers(2, CPUS)
    job = Job(cluster, project, "stopped", "aaaaa")
    job.wait(lambda: bool(job.checkpoints()), "the first epoch")
    job.ray("stop", job.id)

    assert "with `--run-id stopped` it goes on there" in job.finish("STOPPED")
    assert job.status()["state"] == "stopped"

    again = Job(cluster, project, "stopped", "bbbbb")
    log = again.finish()
    check_published(cluster, project, "stopped")
    assert "training_data was finished by an earlier attempt" in log
    assert "training_data ..." not in log
    assert again.status()["attempts"] == 2


@pytest.fixture
def large_project(tmp_path: Path, make_project: Callable[..., Path], cluster: RayNodes) -> Iterator[Path]:
    """A project of many users whose online store, a Redis, all nodes reach."""
    rng = np.random.default_rng(0)
    users = [f"u{number}" for number in range(MANY)]
    interactions = {
        "user_id": np.repeat(users, 5),
        "item_id": [f"i{number}" for number in rng.integers(2000, size=5 * MANY)],
        "event_timestamp": pa.array(
            np.datetime64(TINY_START.replace(tzinfo=None), "us") + np.arange(5 * MANY) * np.timedelta64(30, "s")
        ),
    }
    settings = {
        "model": {"history": "mean", "embedding_size": 16},
        "train": {"epochs": 1, "refit": "off"},
        "evaluation": {"gate": "off"},
        "candidates": {"k": 100, "batch_size": 500},
        "ray": {"threads": 1},
    }
    project = make_project(tmp_path, interactions=interactions, settings=settings)
    with Redis(cluster.gateway) as redis:
        file = project / "feature_repo" / "feature_store.yaml"
        values = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**values, "online_store": redis.online_store()}))
        yield project


def lists(project: Path) -> dict[str, list[str]]:
    """Return everybody's list as it is stored."""
    table = pq.read_table(project / "store" / "two-tower" / "1" / "candidates" / "recommendations")
    return dict(zip(table["user_id"].to_pylist(), table["item_ids"].to_pylist(), strict=True))


def online(project: Path, users: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the list that the online store answers for each user."""
    settings = load_settings(project / "rec_ray.yaml", environ={})
    store = feature_store_of(settings)
    target = find_push_target(store, settings.publish.recommendation_push_source, USER_ID, [ITEM_IDS, SCORES])
    found = read_online(store, target, users)
    return dict(
        zip(users, zip(found[target.fields[MODEL_VERSION]], found[target.fields[ITEM_IDS]], strict=True), strict=True)
    )


def test_a_node_lost_in_candidates_or_in_publishing_changes_nothing(cluster: RayNodes, large_project: Path) -> None:
    cluster.have_workers(2, CPUS)
    Job(cluster, large_project, "whole", "aaaaa").finish()
    expected = lists(large_project)
    assert len(expected) == MANY

    job = Job(cluster, large_project, "anew", "aaaaa", ["candidates", "1"])
    work = large_project / "store" / "two-tower" / "1" / "candidates"
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}

    def begun() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(
                before.get(path) != path.stat().st_mtime_ns for path in (work / "recommendations").glob("*.parquet")
            )
        return False

    job.wait(begun, "the first part", every=0.01)
    cluster.nodes[-1].kill()
    job.finish()
    assert lists(large_project) == expected
    cluster.have_workers(2, CPUS)

    job = Job(cluster, large_project, "again", "aaaaa", ["publish", "1"])
    job.wait(lambda: "update_features ..." in job.log(), "publishing", every=0.2)
    time.sleep(2)
    assert not job.ended()
    cluster.nodes[-1].kill()
    job.finish()
    answers = online(large_project, list(expected))
    assert answers == {user: ("1", found) for user, found in expected.items()}
