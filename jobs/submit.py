"""Submit a command to a Ray cluster as a job, print its log, and end with the exit code of the command.

`entrypoint.sh` calls it with the address, the id of the run and the command. SIGTERM and SIGINT stop the job. `ray job
submit` would end with 0 for a stopped job and with 1 whatever the command ended with. It knows nothing of the pipeline.

A run keeps its id over retries: a job of that id that still runs is followed, one that succeeded is not repeated, and
after one that failed or was stopped the next is submitted as `<id>-2`, `<id>-3` ..., because Ray refuses a used id.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import shlex
import signal
import sys
import time
import uuid
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

WRONG, UNAVAILABLE = 2, 3  # as in rec_ray/errors.py
OUTAGE_SECONDS = 300  # how long the cluster may be out of reach before the job counts as lost
NO_AGENT = "No available agent"
SILENCE_SECONDS = 60  # after so long without a line, ask whether the job still runs


def submit_or_join(client: JobSubmissionClient, command: list[str], run_id: str) -> str:
    """Return the id of a job that runs `command` for this run, or has run it to success."""
    jobs = {job.submission_id: job.status for job in client.list_jobs()}
    job_id, attempt = run_id, 1
    while jobs.get(job_id) in (JobStatus.FAILED, JobStatus.STOPPED):
        attempt += 1
        job_id = f"{run_id}-{attempt}"
    if job_id in jobs:
        print(f"job {job_id} is there already: {jobs[job_id].value}", file=sys.stderr)
        return job_id
    runtime_env = {"env_vars": {"REC_RAY_RUN_ID": run_id}}  # never a secret: Ray shows it to everyone
    return client.submit_job(entrypoint=shlex.join(command), submission_id=job_id, runtime_env=runtime_env)


async def run_job(client: JobSubmissionClient, command: list[str], run_id: str) -> tuple[str, int]:
    """Submit `command`, print its log until it ends, and return the job's id and its exit code."""
    signals: list[int] = []
    job_id = ""

    def stop(number: int) -> None:
        signals.append(number)
        if job_id:
            with contextlib.suppress(OSError, RuntimeError):  # asked again below
                client.stop_job(job_id)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    begun = time.monotonic()
    while not job_id:
        try:
            job_id = submit_or_join(client, command, run_id)
        except RuntimeError as error:
            # A head that has just started answers before its agent is there to start jobs.
            if NO_AGENT not in str(error) or time.monotonic() - begun > OUTAGE_SECONDS:
                raise
            await asyncio.sleep(1)
            if signals:
                return "", 128 + signals[0]
    printed, answered, over = 0, time.monotonic(), False
    broken: Exception | None = None
    while True:
        whole, position = False, 0
        try:
            log = client.tail_job_logs(job_id)
            while text := await asyncio.wait_for(anext(log, ""), SILENCE_SECONDS):
                print(text[max(0, printed - position) :], end="", flush=True)  # a new connection starts from the top
                position += len(text)
                printed = max(printed, position)
            whole = True  # Ray closes it when the job has ended and all is said
        except Exception as error:  # OSError, RuntimeError, aiohttp's own: whatever broke, the job's state decides
            broken = error
        try:
            job = await asyncio.to_thread(client.get_job_info, job_id)
            answered = time.monotonic()
            if job.status.is_terminal() and (whole or over):
                return job_id, exit_code(job, signals)
            over = job.status.is_terminal()
            if signals and not over:
                client.stop_job(job_id)
        except (OSError, RuntimeError) as error:
            broken = error
        if time.monotonic() - answered > OUTAGE_SECONDS:
            print(f"job {job_id} has been out of reach for {OUTAGE_SECONDS} s: {broken}", file=sys.stderr)
            return job_id, UNAVAILABLE
        await asyncio.sleep(1)


def exit_code(job: JobDetails, signals: list[int]) -> int:
    """Return the exit code that stands for how `job` ended, as a shell does where a signal ended it."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return 128 + (signals[0] if signals else signal.SIGTERM)
    if job.driver_exit_code is None:  # the command was never started, or its node was lost
        print(job.message, file=sys.stderr)
        return UNAVAILABLE
    return 128 - job.driver_exit_code if job.driver_exit_code < 0 else job.driver_exit_code


def ask(address: str, command: list[str], run_id: str) -> dict[str, Any]:
    """Run `command`, which ends by printing a JSON object, as a job, and return the object.

    Ends the process with the exit code of the command when that is not 0.
    """
    client = JobSubmissionClient(address)
    job_id, code = asyncio.run(run_job(client, command, run_id))
    if code:
        sys.exit(code)
    for line in reversed(client.get_job_logs(job_id).splitlines()):
        with contextlib.suppress(ValueError):
            if isinstance(answer := json.loads(line), dict):
                return answer
    sys.exit(f"job {job_id} printed no JSON object")


if __name__ == "__main__":
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description="Submit a command to a Ray cluster and end with its exit code.")
    parser.add_argument("--address", required=True, help="http(s) address of the cluster's dashboard")
    parser.add_argument("--run-id", default="", help="the same for every retry of a run; default: a new one")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    try:
        client = JobSubmissionClient(arguments.address)
        run_id = arguments.run_id or f"rec-ray-{uuid.uuid4().hex[:12]}"
        sys.exit(asyncio.run(run_job(client, arguments.command, run_id))[1])
    except AuthenticationError as error:
        print(f"the Ray cluster at {arguments.address} refuses the token: {error}", file=sys.stderr)
        sys.exit(WRONG)
    except (OSError, RuntimeError) as error:
        print(f"the Ray cluster at {arguments.address} does not take the job: {error}", file=sys.stderr)
        sys.exit(UNAVAILABLE)
