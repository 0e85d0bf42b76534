"""The program of the nightly CronJob's pod: create a RayJob from a suspended RayCronJob and follow it to its end.

In: the names of the RayCronJob and of the pod's own Job, and the pod's token. Out: the exit code that describes how the
RayJob ended. It needs the rights to get one RayCronJob and to get, list and create RayJobs in its namespace. It imports
the standard library only, because the pod is small.

The rules it relies on are those of KubeRay 1.6.2 and 1.7.0 (`ray-operator/controllers/ray/rayjob_controller.go`): the
submitter's Job has the name of the RayJob, an existing Job of that name is taken for the submitter
(`createK8sJobIfNeed`), and a RayJob that fails validation stays so (`validateRayJob`).
"""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rec_ray.errors import ConfigError, LockedError, RecRayError, UnavailableError

FAILED = 1
"""Exit code for a RayJob that failed or was stopped; the other codes are those of `errors`."""
NAME_LIMIT = 47
"""Characters of a RayJob's name (`MaxRayJobNameLength`); the operator refuses longer ones."""
SUFFIX = "-run"
"""Suffix of the Job's name, so that the submitter's Job and the CronJob's Job have different names."""
CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
OUTAGE_SECONDS = 600
"""Seconds for which Kubernetes may be unreachable before the RayJob counts as lost."""
TEMPLATE_LABEL, QUEUE_LABEL = "rec-ray/template", "kueue.x-k8s.io/queue-name"
ENDED = ("Complete", "Failed", "ValidationFailed")

Manifest = dict[str, Any]


class Kubernetes:
    """The kinds of KubeRay in the namespace of a pod."""

    def __init__(self, address: str, credentials: Path) -> None:
        self._credentials = credentials
        namespace = (credentials / "namespace").read_text(encoding="utf-8").strip()
        self._kinds = f"{address}/apis/ray.io/v1/namespaces/{namespace}"
        authorities = credentials / "ca.crt"
        self._context = ssl.create_default_context(cafile=str(authorities)) if address.startswith("https:") else None

    def get(self, kind: str, name: str) -> Manifest:
        """Return an object of a kind, such as `rayjobs`, by its name."""
        return self._request(f"{kind}/{name}")

    def rayjobs(self, template: str) -> list[Manifest]:
        """Return the RayJobs that were created from a template."""
        selector = urllib.parse.urlencode({"labelSelector": f"{TEMPLATE_LABEL}={template}"})
        return list(self._request(f"rayjobs?{selector}")["items"])

    def create_rayjob(self, body: Manifest) -> Manifest:
        """Create a RayJob."""
        return self._request("rayjobs", body)

    def _request(self, path: str, body: Manifest | None = None) -> Manifest:
        request = urllib.request.Request(f"{self._kinds}/{path}")
        # Read for each request: the kubelet replaces the token every hour.
        token = (self._credentials / "token").read_text(encoding="utf-8").strip()
        request.add_header("Authorization", f"Bearer {token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30, context=self._context) as response:
            found: Manifest = json.load(response)
        return found


def rayjob_name(job: str) -> str:
    """Return the name of the RayJob of a Job.

    Raises:
        ConfigError: KubeRay would refuse the name.
    """
    name = f"{job}{SUFFIX}"
    if len(name) > NAME_LIMIT:
        raise ConfigError(
            f"RayJob {name} would have {len(name)} characters, KubeRay takes {NAME_LIMIT}; shorten the name of the "
            f"CronJob or Job by {len(name) - NAME_LIMIT}"
        )
    return name


def rayjob_from(template: Manifest, job: str, uid: str, queue: str) -> Manifest:
    """Return a RayJob that starts at once, or with a queue as soon as Kueue admits it.

    It belongs to the Job, so Kubernetes deletes it with the Job when the CronJob's history limits are reached.
    """
    labels = template["metadata"].get("labels", {}) | {TEMPLATE_LABEL: template["metadata"]["name"]}
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}
    metadata = {
        "name": rayjob_name(job),
        "labels": labels | ({QUEUE_LABEL: queue} if queue else {}),
        "ownerReferences": [owner],
    }
    spec = template["spec"]["jobTemplate"] | {"suspend": bool(queue)}
    return {"apiVersion": template["apiVersion"], "kind": "RayJob", "metadata": metadata, "spec": spec}


def start_rayjob(kubernetes: Kubernetes, template: str, job: str, uid: str, queue: str = "") -> str:
    """Create the RayJob of a Job unless an earlier pod of the Job has created it; return its name.

    Raises:
        ConfigError: the template is missing, the name is too long, or Kubernetes refuses the RayJob.
        LockedError: the RayJob of an earlier night has not ended.
        UnavailableError: Kubernetes does not respond.
    """
    name = rayjob_name(job)
    try:
        earlier = {found["metadata"]["name"]: found.get("status", {}) for found in kubernetes.rayjobs(template)}
        if name in earlier:
            print(f"RayJob {name} exists already", flush=True)
            return name
        for other, status in earlier.items():
            if status.get("jobDeploymentStatus") not in ENDED:
                raise LockedError(
                    f"RayJob {other} of an earlier night is {status.get('jobDeploymentStatus') or 'new'}, so none is "
                    f"created for {job}; wait for its end, or run: kubectl delete rayjob {other}"
                )
        kubernetes.create_rayjob(rayjob_from(kubernetes.get("raycronjobs", template), job, uid, queue))
        print(f"RayJob {name} created", flush=True)
    except urllib.error.HTTPError as error:
        message = f"Kubernetes answers {error} for RayJob {name}: {error.read().decode(errors='replace').strip()}"
        if error.code == 409:  # between the list and the creation, by another pod of this Job
            print(f"RayJob {name} exists already", flush=True)
        elif error.code == 429 or error.code >= 500:
            raise UnavailableError(message) from None
        else:
            raise ConfigError(f"{message}; apply the template, the Role and the RoleBinding again") from None
    return name


def follow_rayjob(kubernetes: Kubernetes, name: str, seconds: float, sleep: Callable[[float], None]) -> int:
    """Print each change of state of a RayJob until it ends; return the exit code that describes its end.

    Raises:
        ConfigError: KubeRay refuses the RayJob.
        UnavailableError: the RayJob was deleted, or Kubernetes has not answered for OUTAGE_SECONDS.
    """
    printed, silent = "", 0.0
    while True:
        try:
            status = kubernetes.get("rayjobs", name).get("status", {})
            silent = 0.0
        except (OSError, ValueError) as error:  # HTTPError is an OSError
            if getattr(error, "code", None) == 404:
                raise UnavailableError(f"RayJob {name} was deleted before it ended") from None
            if silent >= OUTAGE_SECONDS:
                raise UnavailableError(f"no state of RayJob {name} for {OUTAGE_SECONDS} s: {error}") from None
            silent += seconds
        else:
            state, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
            reason = status.get("message") or status.get("reason") or "no reason given"
            line = f"RayJob {name}: {state or 'new'} {job}".rstrip()
            if line != printed:
                print(line, flush=True)
                printed = line
            if state == "ValidationFailed":
                raise ConfigError(f"KubeRay refuses RayJob {name}: {reason}")
            if state == "Failed" or (state == "Complete" and job != "SUCCEEDED"):
                print(f"RayJob {name} failed: {reason}; see kubectl logs job/{name}", file=sys.stderr)
                return FAILED
            if state == "Complete":
                return 0
        sleep(seconds)


def main(arguments: Sequence[str] | None = None, sleep: Callable[[float], None] = time.sleep) -> int:
    """Read the arguments, start the RayJob, follow it; return the exit code."""
    parser = argparse.ArgumentParser(description="Create a RayJob from a RayCronJob and follow it to its end.")
    parser.add_argument("--template", required=True, help="name of the suspended RayCronJob")
    parser.add_argument("--job", required=True, help="name of the Job that this pod belongs to")
    parser.add_argument("--uid", required=True, help="uid of that Job, which becomes the owner of the RayJob")
    parser.add_argument("--queue", default="", help="LocalQueue of Kueue that admits the RayJob")
    parser.add_argument("--address", default="https://kubernetes.default.svc", help="of the API server")
    parser.add_argument("--credentials", type=Path, default=CREDENTIALS, help="folder with token, namespace and ca.crt")
    parser.add_argument("--seconds", type=float, default=15, help="between two requests for its state")
    given = parser.parse_args(arguments)
    try:
        kubernetes = Kubernetes(given.address, given.credentials)
        name = start_rayjob(kubernetes, given.template, given.job, given.uid, given.queue)
        return follow_rayjob(kubernetes, name, given.seconds, sleep)
    except RecRayError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"Kubernetes at {given.address} cannot be reached: {error}", file=sys.stderr)
        return UnavailableError.exit_code
