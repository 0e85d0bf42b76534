"""Create a RayJob like a suspended one and wait until it ends: what the nightly CronJob runs in its pod.

In come the two names, from the pod the address of Kubernetes and its token; the exit code says how the RayJob ended. A
RayJob of the name that is there already is followed, so a pod that comes again goes on where the last one was. It
needs the rights to get and create RayJobs in its namespace and nothing else, and knows nothing of the pipeline.
"""

import argparse
import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FAILED, WRONG, UNAVAILABLE = 1, 2, 3  # as in rec_ray/errors.py
POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
OUTAGE_SECONDS = 600  # how long Kubernetes may not answer before the RayJob counts as lost
QUEUE = "kueue.x-k8s.io/queue-name"


class Kubernetes:
    """The RayJobs of a pod's namespace."""

    def __init__(self, address: str, credentials: Path) -> None:
        self.credentials = credentials
        namespace = (credentials / "namespace").read_text().strip()
        self.rayjobs = f"{address}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        authorities = credentials / "ca.crt"
        self.context = ssl.create_default_context(cafile=str(authorities)) if address.startswith("https:") else None

    def ask(self, name: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Get the RayJob of a name, or create one."""
        request = urllib.request.Request(f"{self.rayjobs}/{name}".rstrip("/"))
        # Read each time: Kubernetes replaces it every hour.
        request.add_header("Authorization", f"Bearer {(self.credentials / 'token').read_text().strip()}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def like(template: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a RayJob of another name that starts at once, or when Kueue admits it."""
    labels = template["metadata"].get("labels", {})
    spec = template["spec"] | {"suspend": QUEUE in labels}
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": template["apiVersion"], "kind": "RayJob", "metadata": metadata, "spec": spec}


def create_rayjob(kubernetes: Kubernetes, template: str, name: str) -> None:
    """Create the RayJob unless it is there."""
    try:
        kubernetes.ask(body=like(kubernetes.ask(template), name))
        print(f"RayJob {name} created", flush=True)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
        print(f"RayJob {name} is there already", flush=True)


def wait_for(kubernetes: Kubernetes, name: str, seconds: float) -> int:
    """Say how the RayJob goes on until it ends, and return the exit code for how it ended."""
    said, answered = "", time.monotonic()
    while True:
        try:
            status = kubernetes.ask(name).get("status", {})
            answered = time.monotonic()
        except (OSError, ValueError) as error:  # HTTPError is an OSError
            if getattr(error, "code", None) == 404 or time.monotonic() - answered > OUTAGE_SECONDS:
                print(f"RayJob {name} is out of reach: {error}", file=sys.stderr)
                return UNAVAILABLE
        else:
            job, deployment = status.get("jobStatus", ""), status.get("jobDeploymentStatus", "")
            if said != (said := f"RayJob {name}: {deployment or 'new'} {job}".rstrip()):
                print(said, flush=True)
            if deployment == "Complete":
                return 0 if job == "SUCCEEDED" else FAILED
            if deployment == "Failed":
                print(status.get("message") or status.get("reason") or "no reason given", file=sys.stderr)
                return FAILED
        time.sleep(seconds)


def main() -> int:
    """Read the arguments, create, wait."""
    parser = argparse.ArgumentParser(description="Create a RayJob like another one and wait until it ends.")
    parser.add_argument("--like", required=True, help="name of the suspended RayJob")
    parser.add_argument("--name", required=True, help="name of the new one; the id of its run")
    parser.add_argument("--address", default="https://kubernetes.default.svc")
    parser.add_argument("--credentials", type=Path, default=POD, help="folder with token, namespace and ca.crt")
    parser.add_argument("--seconds", type=float, default=15, help="between two looks at it")
    arguments = parser.parse_args()
    try:
        kubernetes = Kubernetes(arguments.address, arguments.credentials)
        create_rayjob(kubernetes, arguments.like, arguments.name)
    except urllib.error.HTTPError as error:
        print(f"Kubernetes refuses RayJob {arguments.name}: {error} {error.read().decode()}", file=sys.stderr)
        return UNAVAILABLE if error.code >= 500 else WRONG
    except OSError as error:
        print(f"Kubernetes at {arguments.address} cannot be reached: {error}", file=sys.stderr)
        return UNAVAILABLE
    return wait_for(kubernetes, arguments.name, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
