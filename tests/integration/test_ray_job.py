"""A real Ray head with token authentication takes jobs from `entrypoint.sh`, `ray job submit` and Kubeflow."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENTRYPOINT = str(ROOT / "entrypoint.sh")
START_SECONDS = 120

pytestmark = pytest.mark.usefixtures("processes")


@dataclass(frozen=True)
class Head:
    """A running head: the environment that reaches it, the folder it was started in, and where Prometheus asks it."""

    environment: dict[str, str]
    folder: Path
    prometheus: str

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program as a client of the cluster, with more environment."""
        return subprocess.run(
            command, env={**self.environment, **more}, capture_output=True, text=True, timeout=500, cwd=self.folder
        )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: paths of Unix sockets end at 107 characters
    ports = free_ports(5)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "REC_RAY_"))}
    environment |= {
        "PATH": f"{BIN}:{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    options = {
        "temp-dir": str(folder),
        "node-ip-address": "127.0.0.1",
        "port": ports[0],
        "dashboard-port": ports[1],
        "ray-client-server-port": ports[2],
        "dashboard-agent-listen-port": ports[3],
        "metrics-export-port": ports[4],
        "num-cpus": 4,
        "object-store-memory": 300_000_000,
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", *(f"--{name}={options[name]}" for name in options)]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        address = f"http://127.0.0.1:{ports[1]}"
        wait_for_head(address, process, folder / "head.log")
        yield Head({**environment, "RAY_ADDRESS": address, "MODE": "submit"}, folder, f"http://127.0.0.1:{ports[4]}")
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_head(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            assert requests.get(f"{address}/api/version", timeout=5).status_code == 401, "nobody without a token"
        except requests.ConnectionError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"the head did not start:\n{log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the head and what it started, and nothing else: `ray stop` would end every Ray of the machine."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(started, timeout=10)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def test_a_submitted_command_prints_its_log_and_ends_with_its_exit_code(head: Head) -> None:
    ran = head.run(ENTRYPOINT, "bash", "-c", 'echo "the address is $RAY_ADDRESS"; exit 4')

    assert ran.returncode == 4, ran.stderr
    assert ran.stdout.count("the address is ") == 2, "once in the line of Ray that names the command, once by itself"
    assert "the address is http" not in ran.stdout, "in a job Ray says which cluster it is"


def test_a_failed_run_is_tried_again_under_its_id_and_a_finished_one_is_not(head: Head) -> None:
    script = f'echo "run $REC_RAY_RUN_ID" >> {head.folder}/runs; [[ $(wc -l < {head.folder}/runs) == 2 ]]'

    codes = [head.run(ENTRYPOINT, "bash", "-c", script, REC_RAY_RUN_ID="night").returncode for _ in range(3)]

    assert codes == [1, 0, 0]
    assert (head.folder / "runs").read_text() == "run night\nrun night\n"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_job_in_order(head: Head, number: signal.Signals, expected: int) -> None:
    left = head.folder / f"left-{expected}"
    script = f"trap 'touch {left}; echo left in order; exit 0' TERM; echo begun; sleep 120 & wait"
    with subprocess.Popen(
        [ENTRYPOINT, "bash", "-c", script], env=head.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "begun\n":
            assert line, "the job ended before it was told to"
        process.send_signal(number)
        rest = process.stdout.read()

    assert process.returncode == expected
    assert "left in order" in rest
    assert left.exists()


def test_a_run_can_be_stopped_by_its_id_and_other_runs_go_on(head: Head) -> None:
    """The exit task of Kubeflow does this after its launcher was killed without a word to the component."""
    script = "trap 'exit 0' TERM; echo begun; sleep 120 & wait"
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'jobs')!r}); import submit; "
        f"print('STOPPED', *submit.stop_run({head.environment['RAY_ADDRESS']!r}, 'kfp-9'))"
    )
    submit = [str(BIN / "ray"), "job", "submit", "--no-wait", "--submission-id"]
    for name in ("kfp-9-train", "kfp-99-train"):
        begun = head.run(*submit, name, "--", "bash", "-c", script)
        assert begun.returncode == 0, begun.stderr

    stopped = head.run(sys.executable, "-c", program)

    assert "STOPPED kfp-9-train" in stopped.stdout.splitlines(), stopped.stderr
    status = head.run(str(BIN / "ray"), "job", "status", "kfp-99-train").stdout
    assert "RUNNING" in status or "PENDING" in status, status
    assert head.run(str(BIN / "ray"), "job", "stop", "kfp-99-train").returncode == 0
    again = head.run(sys.executable, "-c", program)
    assert "STOPPED" in again.stdout.splitlines(), "nothing is left to stop"


def test_a_wrong_token_is_a_wrong_setting_and_a_missing_cluster_is_unavailable(head: Head) -> None:
    refused = head.run(ENTRYPOINT, "true", RAY_AUTH_TOKEN=secrets.token_hex(32))
    missing = head.run(ENTRYPOINT, "true", RAY_ADDRESS=f"http://127.0.0.1:{free_ports(1)[0]}")

    assert refused.returncode == 2, refused.stderr
    assert "token" in refused.stderr
    assert missing.returncode == 3, missing.stderr


def test_a_misspelt_setting_arrives_at_the_caller_as_exit_code_2(head: Head, tiny_project: Path) -> None:
    ran = head.run(ENTRYPOINT, "run", "--config", str(tiny_project / "rec_ray.yaml"), "--set", "train.epoch=1")

    assert ran.returncode == 2, ran.stdout
    assert "train.epoch" in ran.stdout
    assert "did you mean train.epochs?" in ran.stdout


def metrics_of(head: Head) -> dict[str, float]:
    """Return the program's metrics as the head shows them to Prometheus; `name{tag}` -> value."""
    found = {}
    for line in requests.get(f"{head.prometheus}/metrics", timeout=60).text.splitlines():
        if parts := re.match(r"ray_rec_ray_(\w+)\{(.*)\} (\S+)$", line):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', parts[2]))
            told = [tags[name] for name in ("step", "k", "source") if name in tags]
            found[parts[1] + (f"{{{told[0]}}}" if told else "")] = float(parts[3])
    return found


def test_the_pipeline_runs_as_a_job_and_shows_its_figures(head: Head, tiny_project: Path) -> None:
    config = ["--config", str(tiny_project / "rec_ray.yaml")]
    command = [str(BIN / "ray"), "job", "submit", "--submission-id", "pipeline", "--"]
    command += ["python", str(ROOT / "jobs" / "run_pipeline.py"), *config, "--set", "train.epochs=1"]
    seen: dict[str, float] = {}
    with (head.folder / "job.log").open("w") as log:
        process = subprocess.Popen(command, env=head.environment, stdout=log, stderr=log, cwd=head.folder)
    try:
        # Ray sends metrics every few seconds, and forgets those of a process some time after it is gone.
        while process.poll() is None:
            with contextlib.suppress(requests.RequestException):  # a busy machine
                seen |= metrics_of(head)
            time.sleep(2)
    finally:
        process.kill()
    seen |= metrics_of(head)

    said = (head.folder / "job.log").read_text()
    assert process.returncode == 0, said
    versions = head.run(str(BIN / "rec-ray"), "versions", "--json", *config)
    assert versions.returncode == 0, versions.stderr
    assert json.loads(versions.stdout)["versions"], "the run left a version"
    assert seen["rows_read_total"] == 4000, seen
    assert seen["users_scored_total"] == 200
    assert 0 < seen["recall{10}"] <= seen["recall{20}"] < 1
    assert seen["train_epoch"] == 1 and seen["train_loss"] > 0
    assert seen["train_steps_total"] > 0
    assert seen["step_seconds{train}"] > 0
    assert seen["push_rows_total{user_items_push_source}"] == 200


def test_kubeflow_runs_a_job_for_each_step(head: Head, tiny_project: Path, tmp_path: Path) -> None:
    """With kfp's local runner, which knows no exit handler; a component is a process that the runner starts."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "cluster" / "kubeflow")!r})
from kfp import local
from train_workflow import steps
local.init(local.SubprocessRunner(use_venv=False), pipeline_root={str(tmp_path / "outputs")!r})
task = steps(
    ray_address={head.environment["RAY_ADDRESS"]!r},
    config={str(tiny_project / "rec_ray.yaml")!r},
    settings=["train.epochs=1"],
    jobs={str(ROOT / "jobs")!r},
    run_id="kfp-1",
)
print("VERSION", task.outputs["version"])
print("NDCG", task.outputs["metrics"].metadata["ndcg@10"])
"""
    ran = head.run(sys.executable, "-c", program)

    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-3000:]
    said = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines() if line.startswith(("VERSION ", "NDCG ")))
    list_names = head.run(str(BIN / "rec-ray"), "versions", "--json", "--config", str(tiny_project / "rec_ray.yaml"))
    versions = {row["version"]: row for row in json.loads(list_names.stdout)["versions"]}
    assert versions[said["VERSION"]]["state"] == "live"
    assert 0 < float(said["NDCG"]) < 1
    assert head.environment["RAY_AUTH_TOKEN"] not in ran.stdout + ran.stderr
