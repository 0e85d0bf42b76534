"""A cluster of several nodes with own networks: jobs of the manifest lose nodes, networks and drivers, and go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from node_jobs import Job, manifest_environment
from nodes import BIN, RayNodes, why_not
from servers import Redis
from tiny_project import TINY_START, change_settings

from rec_ray.candidate_store.manifest import RECOMMENDATION_FOLDER, read_manifest, read_parts
from rec_ray.config.loading import load_settings
from rec_ray.feature_store.push_targets import find_push_target, read_online
from rec_ray.runs.context import open_feature_store
from rec_ray.schema import ITEM_IDS, MODEL_VERSION, SCORES, USER_ID
from rec_ray.storage.model_store import candidates_folder
from rec_ray.storage.object_store import open_storage

MUST_RUN = "TESTS_OF_NODES_MUST_RUN" in os.environ
"""Set in continuous integration, which skips none of them: where nodes cannot be made, they fail."""
REASON = None if MUST_RUN else why_not()
CPUS = 3
"""Of a worker: two for a training worker, one for the data that feeds it."""
EPOCHS, MORE_EPOCHS = 12, 120
"""Of a training; the larger number takes longer than a node to start."""
MANY = 20_000
"""Users of the project whose candidates several nodes compute."""

TOLERANCE = 0.05
"""Of Recall@20 between two trainings of the same data, one of which lost workers."""

pytestmark = [
    pytest.mark.usefixtures("processes"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


@dataclass(frozen=True)
class Outcome:
    """Items in the list of each user, and Recall@20 of the model and of popularity."""

    lengths: dict[str, int]
    recall: float
    popularity: float


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with RayNodes(manifest_environment()) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def make_trained(make_project: Callable[..., Path], tiny_tables: dict[str, Any]) -> Callable[[Path], Path]:
    """Give `make_trained(folder)`: a project that trains on two nodes for a while."""

    def make(folder: Path) -> Path:
        project = make_project(folder, **tiny_tables, settings={"model": {"history": "mean", "embedding_size": 16}})
        change_settings(
            project,
            {
                "train": {"num_workers": 2, "cpus_per_worker": 2, "epochs": EPOCHS, "patience": EPOCHS, "refit": "off"},
                "candidates": {"k": 20},
                "ray": {"threads": 1},
            },
        )
        return project

    return make


@pytest.fixture
def project(tmp_path: Path, make_trained: Callable[[Path], Path]) -> Path:
    return make_trained(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(
    cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory, make_trained: Callable[[Path], Path]
) -> Outcome:
    """What the same run comes to when nothing happens to it."""
    cluster.have_workers(2, CPUS)
    project = make_trained(tmp_path_factory.mktemp("undisturbed"))
    Job(cluster, project, "undisturbed", "aaaaa").finish()
    return outcome_of(cluster, project, "undisturbed")


def outcome_of(cluster: RayNodes, project: Path, run_id: str, epochs: int = EPOCHS) -> Outcome:
    """Return what a run came to: one version is live, of this run, which learned each epoch once."""
    list_names = subprocess.run(
        [str(BIN / "rec-ray"), "versions", "--json", "-C", str(project)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = json.loads(list_names.stdout)["versions"]
    assert (row["state"], row["version"], row["run_id"]) == ("live", "1", run_id)
    model = json.loads((project / "store" / "two-tower" / "1" / "metadata.json").read_text())
    assert [epoch["epoch"] for epoch in model["epochs"]] == list(range(1, epochs + 1)), "no epoch twice, none left out"
    found = lists(project)
    answers = online(project, list(found))
    assert answers == {user: ("1", own) for user, own in found.items()}, "what is served is what was computed"
    lengths = {user: len(own) for user, own in found.items()}
    metrics = model["metrics"]
    return Outcome(lengths, metrics["model"]["recall@20"], metrics["popularity"]["recall@20"])


def check_published(cluster: RayNodes, project: Path, run_id: str, undisturbed: Outcome, epochs: int = EPOCHS) -> None:
    """Compare what a run published with what it publishes undisturbed."""
    outcome = outcome_of(cluster, project, run_id, epochs)
    assert outcome.lengths == undisturbed.lengths
    assert outcome.popularity == undisturbed.popularity, "the same users were asked about the same items"
    if epochs == EPOCHS:
        assert abs(outcome.recall - undisturbed.recall) < TOLERANCE
    else:
        assert outcome.recall > undisturbed.recall - TOLERANCE, "it learned longer, from one worker or two"
    # Nine of ten events stay within one of four groups: what has learned anything is far above chance.
    assert outcome.recall > 2 * outcome.popularity


@pytest.mark.faults
def test_a_new_node_takes_part_and_a_killed_driver_is_followed_by_another(
    cluster: RayNodes,
    project: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
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
    log = again.finish(seconds=900)
    # Only now: the undisturbed run has two nodes from the start.
    check_published(cluster, project, "growing", request.getfixturevalue("undisturbed"), MORE_EPOCHS)
    assert "training_data was finished by an earlier attempt" in log
    assert again.status()["state"] == "done"
    assert again.status()["attempts"] == 2


def test_two_nodes_train_and_another_takes_the_place_of_one_that_is_lost(
    cluster: RayNodes, project: Path, undisturbed: Outcome, record_property: Callable[[str, object], None]
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
    check_published(cluster, project, "night", undisturbed)
    assert job.status()["attempts"] == 1


@pytest.mark.faults
def test_a_node_without_network_for_half_a_minute_costs_no_run(
    cluster: RayNodes, project: Path, undisturbed: Outcome
) -> None:
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
    check_published(cluster, project, "cut", undisturbed)


@pytest.mark.faults
def test_a_stopped_job_leaves_in_order_and_the_same_run_goes_on(
    cluster: RayNodes, project: Path, undisturbed: Outcome
) -> None:
    cluster.have_workers(2, CPUS)
    job = Job(cluster, project, "stopped", "aaaaa")
    job.wait(lambda: bool(job.checkpoints()), "the first epoch")
    job.ray("stop", job.id)

    assert "resume it with `--run-id stopped`" in job.finish("STOPPED")
    assert job.status()["state"] == "stopped"

    again = Job(cluster, project, "stopped", "bbbbb")
    log = again.finish()
    check_published(cluster, project, "stopped", undisturbed)
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
    storage, folder = open_storage(str(project / "store")), candidates_folder("1")
    table = read_parts(storage, folder, read_manifest(storage, folder), RECOMMENDATION_FOLDER)
    return dict(zip(table["user_id"].to_pylist(), table["item_ids"].to_pylist(), strict=True))


def online(project: Path, users: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the list that the online store answers for each user."""
    settings = load_settings(project / "rec_ray.yaml", environ={})
    store = open_feature_store(settings)
    target = find_push_target(store, settings.publish.recommendation_push_source, USER_ID, [ITEM_IDS, SCORES])
    found = read_online(store, target, users)
    return dict(
        zip(users, zip(found[target.fields[MODEL_VERSION]], found[target.fields[ITEM_IDS]], strict=True), strict=True)
    )


@pytest.mark.faults
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
                before.get(path) != path.stat().st_mtime_ns for path in (work / "recommendations").rglob("*.parquet")
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
