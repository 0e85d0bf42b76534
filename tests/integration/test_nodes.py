"""A cluster of several nodes with own networks: two train, one is lost, one comes; a stopped job goes on."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import change_settings
from manifests import ROOT
from nodes import BIN, RayNodes, why_not

REASON = why_not()
EPOCHS = 12

pytestmark = [pytest.mark.integration, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    """A head and two workers, of three CPUs each: two for a training worker, one for the data that feeds it."""
    with RayNodes() as nodes:
        nodes.add_worker(cpus=3)
        nodes.add_worker(cpus=3)
        yield nodes


@pytest.fixture
def project(tmp_path: Path, make_project: Callable[..., Path], tiny_tables: dict[str, Any]) -> Path:
    """A project that trains on two nodes for a while."""
    folder = make_project(tmp_path, **tiny_tables, settings={"model": {"history": "mean", "embedding_size": 16}})
    change_settings(
        folder,
        {
            "train": {"num_workers": 2, "cpus_per_worker": 2, "epochs": EPOCHS, "patience": EPOCHS},
            "candidates": {"k": 20},
            "ray": {"threads": 1},
        },
    )
    return folder


class Job:
    """A run of the project, submitted as the manifests do it, and what it leaves in the store."""

    def __init__(self, cluster: RayNodes, project: Path, run_id: str, attempt: str) -> None:
        self.cluster, self.id = cluster, attempt
        self.store = project / "store"
        self.folder = self.store / "runs" / run_id
        self.trained = self.store / "training" / run_id
        command = [str(ROOT / "entrypoint.sh"), "run", "--config", str(project / "rec_ray.yaml")]
        environment = json.dumps({"env_vars": {"MODE": "driver", "REC_RAY_RUN_ID": run_id}})
        self.submitted = time.monotonic()
        self.ray("submit", "--no-wait", "--submission-id", attempt, "--runtime-env-json", environment, "--", *command)

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

    def wait(self, until: Callable[[], bool], what: str, seconds: float = 400) -> float:
        """Wait until something is so, and return the seconds since the job was submitted."""
        deadline = time.monotonic() + seconds
        while not until():
            ended = self.ended()
            assert not ended, f"the job ended ({ended}) before {what}:\n{self.log()[-6000:]}"
            assert time.monotonic() < deadline, f"no {what} within {seconds} s:\n{self.log()[-6000:]}"
            time.sleep(0.5)
        return time.monotonic() - self.submitted

    def finish(self, seconds: float = 400) -> str:
        deadline = time.monotonic() + seconds
        while not (end := self.ended()):
            assert time.monotonic() < deadline, self.log()[-6000:]
            time.sleep(1)
        return end

    def checkpoints(self) -> set[str]:
        return {path.name for path in self.trained.glob("checkpoint_*") if (path / "progress.json").is_file()}

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return found

    def training_nodes(self) -> set[str]:
        """Return the nodes on which training workers are."""
        actors = self.cluster.state("actors")
        return {
            actor["node_id"]
            for actor in actors
            if actor["class_name"] == "RayTrainWorker" and actor["state"] == "ALIVE"
        }


def live_version(cluster: RayNodes, project: Path) -> dict[str, Any]:
    listed = subprocess.run(
        [str(BIN / "rec-ray"), "versions", "--json", "-C", str(project)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    versions = json.loads(listed.stdout)["versions"]
    assert [row["state"] for row in versions] == ["live"]
    return dict(versions[0])


def test_two_nodes_train_and_a_new_one_takes_the_place_of_one_that_is_lost(
    cluster: RayNodes, project: Path, record_property: Callable[[str, object], None]
) -> None:
    job = Job(cluster, project, "night", "night")
    first = job.wait(lambda: bool(job.checkpoints()), "the first epoch")
    assert len(job.training_nodes()) == 2
    lost = cluster.nodes[2]
    before = job.checkpoints()

    killed = time.monotonic()
    lost.kill()
    cluster.add_worker(cpus=3)
    job.wait(lambda: bool(job.checkpoints() - before), "an epoch after the loss")
    again = time.monotonic() - killed

    assert job.finish() == "SUCCEEDED", job.log()[-6000:]
    row = live_version(cluster, project)
    assert (row["version"], row["run_id"]) == ("1", "night")
    model = json.loads((project / "store" / "two-tower" / "1" / "metadata.json").read_text())
    assert [epoch["epoch"] for epoch in model["epochs"]] == list(range(1, EPOCHS + 1)), "no epoch twice, none left out"
    assert job.status()["state"] == "done"
    record_property("seconds from submitting to the first epoch", round(first, 1))
    record_property("seconds from a killed node to the next epoch", round(again, 1))
    print(f"submitted to first epoch {first:.1f} s, killed node to next epoch {again:.1f} s")


def test_a_stopped_job_leaves_in_order_and_the_same_run_goes_on(cluster: RayNodes, project: Path) -> None:
    job = Job(cluster, project, "stopped", "stopped")
    job.wait(lambda: bool(job.checkpoints()), "the first epoch")
    job.ray("stop", job.id)

    assert job.finish() == "STOPPED"
    assert job.status()["state"] == "stopped"
    assert "with `--run-id stopped` it goes on there" in job.log()

    again = Job(cluster, project, "stopped", "stopped-2")
    assert again.finish() == "SUCCEEDED", again.log()[-6000:]
    assert live_version(cluster, project)["run_id"] == "stopped"
    said = again.log()
    assert "training_data was finished by an earlier attempt" in said
    assert "training_data ..." not in said
    assert again.status()["attempts"] == 2
