"""The job scripts hand their arguments to one command each, and the submitter reports how a job ended."""

import ast
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from rec_ray.cli.job_submission import exit_code, submit_or_join

JOBS = Path(__file__).parents[1] / "jobs"
COMMANDS = {
    "run_pipeline": "run",
    "train": "train",
    "generate_candidates": "candidates",
    "update_features": "publish",
}


@pytest.mark.parametrize(("script", "command"), COMMANDS.items())
def test_a_job_script_is_one_command_with_the_given_arguments(
    script: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[list[str]] = []

    def main(argv: list[str]) -> int:
        received.append(argv)
        return 5

    stub = ModuleType("rec_ray.cli.main")
    stub.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rec_ray.cli.main", stub)
    monkeypatch.setattr(sys, "argv", [script, "--set", "train.epochs=1"])
    source = (JOBS / f"{script}.py").read_text()

    with pytest.raises(SystemExit) as ended:
        exec(compile(source, script, "exec"), {"__name__": "__main__"})

    assert received == [[command, "--set", "train.epochs=1"]]
    assert ended.value.code == 5
    assert len(source.splitlines()) <= 40
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "signals", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, [], 0),
        (JobStatus.FAILED, 2, [], 2),
        (JobStatus.FAILED, 6, [signal.SIGTERM], 6),
        (JobStatus.FAILED, -signal.SIGKILL, [], 137),
        (JobStatus.FAILED, None, [], 3),
        (JobStatus.STOPPED, None, [], 143),
        (JobStatus.STOPPED, None, [signal.SIGINT], 130),
        (JobStatus.SUCCEEDED, 0, [signal.SIGTERM], 0),
    ],
)
def test_the_exit_code_is_that_of_the_command(
    status: JobStatus, driver_exit_code: int | None, signals: list[int], expected: int
) -> None:
    job = SimpleNamespace(status=status, driver_exit_code=driver_exit_code, message="the node was lost")

    assert exit_code(job, signals) == expected


class Cluster:
    """A double of the job client that knows some jobs."""

    def __init__(self, **jobs: JobStatus) -> None:
        self.jobs = [SimpleNamespace(submission_id=name.replace("_", "-"), status=jobs[name]) for name in jobs]
        self.submitted: list[dict[str, object]] = []

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.jobs

    def submit_job(self, **job: object) -> str:
        self.submitted.append(job)
        return str(job["submission_id"])


@pytest.mark.parametrize(
    ("jobs", "job_id", "submits"),
    [
        ({}, "night", True),
        ({"other": JobStatus.RUNNING}, "night", True),
        ({"night": JobStatus.RUNNING}, "night", False),
        ({"night": JobStatus.SUCCEEDED}, "night", False),
        ({"night": JobStatus.FAILED}, "night-2", True),
        ({"night": JobStatus.FAILED, "night_2": JobStatus.STOPPED}, "night-3", True),
        ({"night": JobStatus.FAILED, "night_2": JobStatus.PENDING}, "night-2", False),
    ],
)
def test_a_run_has_one_job_at_a_time_and_is_not_repeated_after_success(
    jobs: dict[str, JobStatus], job_id: str, submits: bool
) -> None:
    cluster = Cluster(**jobs)

    assert submit_or_join(cluster, ["rec-ray", "run", "--set", "a.b=c d"], "night") == job_id

    assert len(cluster.submitted) == submits
    if submits:
        assert cluster.submitted[0]["entrypoint"] == "rec-ray run --set 'a.b=c d'"
        assert cluster.submitted[0]["runtime_env"] == {"env_vars": {"REC_RAY_RUN_ID": "night"}}
