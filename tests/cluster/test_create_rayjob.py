"""The nightly CronJob's program against a double of Kubernetes: what it creates, how long it waits, how it ends."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "jobs" / "create_rayjob.py"
PLACE = "/apis/ray.io/v1/namespaces/shop/rayjobs"
TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "rec-ray", "labels": {"app": "rec-ray"}, "uid": "1", "resourceVersion": "7"},
    "spec": {"entrypoint": "true", "suspend": True},
    "status": {"jobDeploymentStatus": "Suspended"},
}


class Double(ThreadingHTTPServer):
    """RayJobs in memory; a created one goes through `course`, one look at a time, and stays at the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.rayjobs: dict[str, dict[str, Any]] = {"rec-ray": TEMPLATE}
        self.course: list[dict[str, Any] | int] = []
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()


class Answers(BaseHTTPRequestHandler):
    server: Double

    def answer(self, code: int, body: dict[str, Any]) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self) -> None:
        found = self.server.rayjobs.get(self.path.removeprefix(f"{PLACE}/"))
        if found is None:
            return self.answer(404, {"message": "not found"})
        if found is TEMPLATE:
            return self.answer(200, found)
        course = self.server.course
        status = course.pop(0) if len(course) > 1 else course[0]
        return self.answer(status, {}) if isinstance(status, int) else self.answer(200, {**found, "status": status})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != PLACE:
            return self.answer(404, {"message": "no such place"})
        if body["metadata"]["name"] in self.server.rayjobs:
            return self.answer(409, {"message": "already exists"})
        self.server.created.append(body)
        self.server.rayjobs[body["metadata"]["name"]] = body
        return self.answer(201, body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def kubernetes() -> Iterator[Double]:
    with Double() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def create(kubernetes: Double, folder: Path, like: str = "rec-ray") -> subprocess.CompletedProcess[str]:
    (folder / "token").write_text("a-token\n")
    (folder / "namespace").write_text("shop")
    address = f"http://127.0.0.1:{kubernetes.server_port}"
    command = [sys.executable, str(SCRIPT), "--like", like, "--name", "night-1", "--address", address]
    command += ["--credentials", str(folder), "--seconds", "0.05"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
STOPPED = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "the disk is full"}


@pytest.mark.parametrize(
    ("course", "code", "says"),
    [
        ([{}, RUNNING, 503, RUNNING, DONE], 0, "Complete SUCCEEDED"),
        ([RUNNING, STOPPED], 1, "Complete STOPPED"),
        ([RUNNING, FAILED], 1, "the disk is full"),
        ([RUNNING, 404], 3, "out of reach"),
    ],
)
def test_it_creates_one_like_the_suspended_and_ends_as_it_ends(
    kubernetes: Double, tmp_path: Path, course: list[Any], code: int, says: str
) -> None:
    kubernetes.course = list(course)

    done = create(kubernetes, tmp_path)

    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert done.stdout.count("Running") <= 1, "said once"
    metadata = {"name": "night-1", "labels": {"app": "rec-ray"}}
    spec = {"entrypoint": "true", "suspend": False}
    assert kubernetes.created == [
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec},
    ]
    assert kubernetes.tokens == {"Bearer a-token"}


def test_a_pod_that_comes_again_follows_the_rayjob_that_is_there(kubernetes: Double, tmp_path: Path) -> None:
    kubernetes.course = [DONE]
    kubernetes.rayjobs["night-1"] = {**TEMPLATE, "metadata": {"name": "night-1"}}

    done = create(kubernetes, tmp_path)

    assert (done.returncode, kubernetes.created) == (0, [])
    assert "there already" in done.stdout


def test_with_a_queue_it_stays_suspended_until_kueue_admits_it(
    kubernetes: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATE, "metadata", {"name": "rec-ray", "labels": {"kueue.x-k8s.io/queue-name": "q"}})
    kubernetes.course = [DONE]

    assert create(kubernetes, tmp_path).returncode == 0
    assert kubernetes.created[0]["spec"]["suspend"] is True


def test_what_cannot_be_created_is_told_from_what_cannot_be_reached(kubernetes: Double, tmp_path: Path) -> None:
    missing = create(kubernetes, tmp_path, like="other")
    kubernetes.server_port = 1  # nobody listens there
    unreachable = create(kubernetes, tmp_path)

    assert missing.returncode == 2 and "refuses" in missing.stderr
    assert unreachable.returncode == 3 and "cannot be reached" in unreachable.stderr
