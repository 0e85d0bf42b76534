"""Jobs of a project on a cluster of `nodes.RayNodes`, submitted as the manifest of a RayJob does it.

A cluster, a project and the id of a run come in; what the job says, where it is and what it leaves in the store can be
asked, and waited for. It knows no test.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manifests import ROOT, the
from nodes import BIN, RayNodes


def manifest_environment() -> dict[str, str]:
    """Return what the manifest sets for every pod, but for the names of users and secrets."""
    job = the("production", "RayCronJob")["spec"]["jobTemplate"]
    container = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {
        each["name"]: each["value"] for each in container["env"] if each["name"].startswith("RAY_") and "value" in each
    }


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
        entrypoint = the("production", "RayCronJob")["spec"]["jobTemplate"]["entrypoint"]
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
        return max((len(each["epochs"]) for progress in newest for each in progress["attempts"]), default=0)

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
