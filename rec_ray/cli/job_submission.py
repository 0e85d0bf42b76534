"""Ray jobs of a run: submit a command and follow it, return its result, or stop the jobs of a run.

In: the address of a cluster, the id of the run and the command. Out: the log on standard output, and the exit code of
the command; `ray job submit` would end with 0 for a stopped job and with 1 for every other code. SIGTERM and SIGINT
stop the job.

A run keeps its id over retries: a running job of that id is followed, one that succeeded is not repeated, and after one
that failed or was stopped the next is submitted as `<id>-2`, `<id>-3`, ..., because Ray refuses a used id.
"""

from __future__ import annotations

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
from collections.abc import Sequence
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from rec_ray.errors import ConfigError, UnavailableError

OUTAGE_SECONDS = 300
"""Seconds for which the cluster may be unreachable before the job counts as lost."""
NO_AGENT = "No available agent"
SILENCE_SECONDS = 60
"""Seconds without a log line after which the state of the job is requested."""


def submit_or_join(client: JobSubmissionClient, command: list[str], run_id: str) -> str:
    """Return the id of a job of this run that runs `command` or has succeeded; submit one if there is none."""
    jobs = {job.submission_id: job.status for job in client.list_jobs()}
    job_id, attempt = run_id, 1
    while jobs.get(job_id) in (JobStatus.FAILED, JobStatus.STOPPED):
        attempt += 1
        job_id = f"{run_id}-{attempt}"
    if job_id in jobs:
        print(f"job {job_id} exists already: {jobs[job_id].value}", file=sys.stderr)
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
            with contextlib.suppress(OSError, RuntimeError):  # repeated below
                client.stop_job(job_id)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    begun = time.monotonic()
    while not job_id:
        try:
            job_id = submit_or_join(client, command, run_id)
        except RuntimeError as error:
            # A new head responds before its agent can start jobs.
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
            whole = True  # Ray closes the stream after the last line of an ended job
        except Exception as error:  # OSError, RuntimeError, aiohttp's own: the job's state decides
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
            return job_id, UnavailableError.exit_code
        await asyncio.sleep(1)


def exit_code(job: JobDetails, signals: list[int]) -> int:
    """Return the exit code of an ended job, 128 plus the number of the signal if one ended it."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return 128 + (signals[0] if signals else signal.SIGTERM)
    if job.driver_exit_code is None:  # the command was never started, or its node was lost
        print(job.message, file=sys.stderr)
        return UnavailableError.exit_code
    return 128 - job.driver_exit_code if job.driver_exit_code < 0 else job.driver_exit_code


def stop_run(address: str, run_id: str, seconds: float = OUTAGE_SECONDS) -> list[str]:
    """Stop the jobs of a run, `<run_id>-...`, that have not ended; return their ids when they have.

    Raises:
        RuntimeError: a job still runs after so many seconds.
    """
    client = JobSubmissionClient(address)
    stopped: set[str] = set()
    begun = time.monotonic()
    while True:
        mine = [job for job in client.list_jobs() if str(job.submission_id).startswith(f"{run_id}-")]
        running = [str(job.submission_id) for job in mine if not job.status.is_terminal()]
        if not running:
            return sorted(stopped)
        if time.monotonic() - begun > seconds:
            raise RuntimeError(f"jobs {', '.join(running)} still run {seconds:.0f} s after they were stopped")
        for job_id in running:
            if job_id not in stopped:
                print(f"stopping job {job_id}", flush=True)
                client.stop_job(job_id)
                stopped.add(job_id)
        time.sleep(1)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit the command of the arguments, follow it, and return its exit code."""
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description="Submit a command to a Ray cluster and end with its exit code.")
    parser.add_argument("--address", required=True, help="http(s) address of the cluster's dashboard")
    parser.add_argument("--run-id", default="", help="the same for every retry of a run; default: a new one")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    try:
        client = JobSubmissionClient(given.address)
        run_id = given.run_id or f"rec-ray-{uuid.uuid4().hex[:12]}"
        return asyncio.run(run_job(client, given.command, run_id))[1]
    except AuthenticationError as error:
        print(f"the Ray cluster at {given.address} refuses the token: {error}", file=sys.stderr)
        return ConfigError.exit_code
    except (OSError, RuntimeError) as error:
        print(f"the Ray cluster at {given.address} does not accept the job: {error}", file=sys.stderr)
        return UnavailableError.exit_code
