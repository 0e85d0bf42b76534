"""A double of Kubernetes with the KubeRay operator, Kueue and CronJobs, and a clock that only `advance` moves.

Manifests are applied, Ray jobs get outcomes, and `advance` reconciles every three seconds of its clock. Each rule names
its source: "rayjob" is ray-operator/controllers/ray/rayjob_controller.go, "cron" raycronjob_controller.go, "validation"
utils/validation.go, all at the tags v1.6.2 and v1.7.0 of ray-project/kuberay. Rules of one tag only are marked.
"""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import dataclass, field
from typing import Any

from manifests import validator_of

REQUEUE_SECONDS = 3  # rayjob: RayJobDefaultRequeueDuration
SUBMITTER_FINISHED_SECONDS = 30  # rayjob: DefaultSubmitterFinishedTimeout
STATUS_CHECK_SECONDS = 300  # utils/constant.go: DEFAULT_RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS, from 1.7.0 on
CLUSTER_SECONDS = 60  # until the pods of a RayCluster are ready
QUEUE = "kueue.x-k8s.io/queue-name"
HELM = {"app.kubernetes.io/name": "kuberay-operator", "app.kubernetes.io/component": "kuberay-operator"}
"""Labels of the operator's pod in helm-chart/kuberay-operator/templates/deployment.yaml."""
KUSTOMIZE = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}
"""Labels of the operator's pod in ray-operator/config/manager/manager.yaml."""

Manifest = dict[str, Any]


class RefusedError(Exception):
    """The API server refuses a request with this code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Outcome:
    """The end of a Ray job, and the seconds until then."""

    status: str = "SUCCEEDED"
    seconds: float = 600


@dataclass
class Cluster:
    """A namespace of Kubernetes.

    kuberay: the tag of the operator. operator: the labels of its pod. queues: LocalQueue of Kueue -> the time from
    which it admits. outcomes: of the Ray jobs in the order of submission; later ones succeed. outages: (from, to) in
    which Ray's dashboard does not answer the operator.
    """

    kuberay: str = "1.7.0"
    operator: dict[str, str] = field(default_factory=lambda: dict(HELM))
    queues: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    ready_seconds: float = CLUSTER_SECONDS
    now: float = 0.0
    objects: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    ray_jobs: dict[str, tuple[float, Outcome]] = field(default_factory=dict)
    submissions: list[tuple[str, str]] = field(default_factory=list)
    lifetimes: dict[str, list[float]] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()

    # The API server.

    def create(self, manifest: Manifest) -> Manifest:
        """Create an object, after admission."""
        made = copy.deepcopy(manifest)
        kind, name = made["kind"], made["metadata"]["name"]
        if (kind, name) in self.objects:
            raise RefusedError(409, f"{kind} {name} already exists")
        if made["apiVersion"].startswith("ray.io/"):
            wrong = next(validator_of(kind, self.kuberay).iter_errors(made), None)
            if wrong is not None:
                raise RefusedError(400, f"strict decoding error: {wrong.message}")
        if kind == "RayJob" and self.queues:
            self._kueue_default(made)
        made["metadata"] |= {"uid": f"uid-{next(self._numbers)}", "creationTimestamp": self.now}
        made["metadata"].setdefault("labels", {})
        self.objects[kind, name] = made
        if kind == "RayCluster":
            self.lifetimes[name] = [self.now]
        return made

    def apply(self, manifests: list[Manifest]) -> None:
        """Create objects, or replace their specification, as `kubectl apply` does."""
        for manifest in manifests:
            existing = self.objects.get((manifest["kind"], manifest["metadata"]["name"]))
            if existing is None:
                self.create(manifest)
            elif "spec" in manifest:
                existing["spec"] = copy.deepcopy(manifest["spec"])

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and, as the garbage collector does, everything that it owns."""
        gone = self.objects.pop((kind, name))
        if kind == "RayCluster":
            self.lifetimes[name].append(self.now)
            for job in [job for cluster, job in self.submissions if cluster == name]:
                self.ray_jobs.pop(job, None)
        for key, found in list(self.objects.items()):
            owners = {owner["uid"] for owner in found["metadata"].get("ownerReferences", [])}
            if gone["metadata"]["uid"] in owners and key in self.objects:
                self.delete(*key)

    def find(self, kind: str, name: str | None = None) -> Manifest | None:
        """Return an object by its name, or the only one of its kind."""
        if name is not None:
            return self.objects.get((kind, name))
        found = self.all(kind)
        assert len(found) == 1, [each["metadata"]["name"] for each in found]
        return found[0]

    def all(self, kind: str) -> list[Manifest]:
        return [found for (each, _), found in self.objects.items() if each == kind]

    # The clock and the controllers.

    def advance(self, seconds: float) -> None:
        """Move the clock, and let every controller reconcile on the way."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + REQUEUE_SECONDS)
            for found in self.all("RayCronJob"):
                self._reconcile_raycronjob(found)
            self._admit()
            for found in self.all("Job"):
                self._run_submitter(found)
            for found in self.all("RayJob"):
                self._reconcile_rayjob(found)

    def fire(self, cronjob: Manifest) -> Manifest | None:
        """Create the Job of a CronJob for this minute; None where concurrencyPolicy forbids it."""
        mine = [job for job in self.all("Job") if _owned(job, cronjob)]
        if cronjob["spec"]["concurrencyPolicy"] == "Forbid" and any("conditions" not in job["status"] for job in mine):
            return None
        # batch/v1 CronJob: pkg/controller/cronjob/utils.go, getJobName.
        name = f"{cronjob['metadata']['name']}-{int(self.now // 60) + 29_384_760}"
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "ownerReferences": [_owner(cronjob)]},
        }
        return self.create(job | {"spec": cronjob["spec"]["jobTemplate"]["spec"], "status": {}})

    def end_job(self, job: Manifest, failed: bool) -> None:
        """End a Job of a CronJob; the CronJob's history limits then delete the oldest ones."""
        job["status"]["conditions"] = [_condition("Failed" if failed else "Complete", self.now)]
        cronjob = next(each for each in self.all("CronJob") if _owned(job, each))
        for ended, limit in (("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")):
            old = [
                each["metadata"]["name"]
                for each in self.all("Job")
                if _owned(each, cronjob) and _finished(each) and each["status"]["conditions"][0]["type"] == ended
            ]
            for name in old[: -cronjob["spec"][limit]]:
                self.delete("Job", name)

    def command_of(self, job: Manifest) -> list[str]:
        """Return the command of a Job's pod with its variables replaced, as the kubelet does."""
        (container,) = job["spec"]["template"]["spec"]["containers"]
        labels = {
            "batch.kubernetes.io/job-name": job["metadata"]["name"],
            "batch.kubernetes.io/controller-uid": job["metadata"]["uid"],
        }
        values = {}
        for entry in container["env"]:
            label = re.fullmatch(r"metadata\.labels\['(.*)'\]", entry["valueFrom"]["fieldRef"]["fieldPath"])
            assert label, entry
            values[entry["name"]] = labels[label[1]]
        return [re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], word) for word in container["command"]]

    # Kueue.

    def _kueue_default(self, rayjob: Manifest) -> None:
        """Suspend a job that has a queue; one without gets the queue named default.

        Kueue: pkg/controller/jobframework/defaults.go, ApplyDefaultLocalQueue and ApplyDefaultForSuspend.
        """
        labels = rayjob["metadata"].setdefault("labels", {})
        if "default" in self.queues:
            labels.setdefault(QUEUE, "default")
        if QUEUE in labels:
            rayjob["spec"]["suspend"] = True

    def _admit(self) -> None:
        for rayjob in self.all("RayJob"):
            opens = self.queues.get(rayjob["metadata"]["labels"].get(QUEUE, ""))
            if opens is not None and self.now >= opens and not _has_ended(rayjob):
                rayjob["spec"]["suspend"] = False

    # The operator.

    def _reconcile_raycronjob(self, cron: Manifest) -> None:
        """Create the RayJob of each midnight; the schedules of the tests are those of once a day (cron: Reconcile)."""
        assert cron["spec"]["schedule"] == "0 0 * * *"
        if cron["spec"].get("suspend"):
            return
        status = cron.setdefault("status", {})
        due = (status.get("lastScheduleTime", cron["metadata"]["creationTimestamp"]) // 86400 + 1) * 86400
        if due > self.now:
            return
        # cron: constructRayJob; 1.7.0 names it by the minute (getRayJobName), 1.6.2 by chance.
        suffix = int(due // 60) if self.kuberay == "1.7.0" else self._random()
        name = cron["metadata"]["name"]
        metadata = {
            "name": f"{name}-{suffix}",
            "labels": {"ray.io/cron-job-name": name},
            "ownerReferences": [_owner(cron)],
        }
        spec = cron["spec"]["jobTemplate"]
        self.create({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec})
        status["lastScheduleTime"] = due if self.kuberay == "1.7.0" else self.now

    def _reconcile_rayjob(self, rayjob: Manifest) -> None:
        """rayjob: Reconcile, in K8sJobMode with a cluster of its own."""
        spec, name = rayjob["spec"], rayjob["metadata"]["name"]
        status = rayjob.setdefault("status", {})
        state = status.get("jobDeploymentStatus", "")
        if wrong := _invalid(rayjob):
            status |= {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": wrong}
        elif state == "":  # initRayJobStatusIfNeed: startTime counts anew for each attempt
            status |= {"jobId": f"{name}-{self._random()}", "rayClusterName": f"{name}-{self._random()}"}
            status |= {"jobDeploymentStatus": "Initializing", "startTime": self.now, "jobStatus": ""}
        elif state == "Initializing":
            if not (self._suspends(rayjob) or self._deadline(rayjob) or self._deadline(rayjob, "preRunning")):
                self._initialize(rayjob)
        elif state == "Running":
            if not (self._suspends(rayjob) or self._deadline(rayjob) or self._cannot_check(status)):
                self._watch(rayjob)
        elif state in ("Suspending", "Retrying"):
            owned = [("RayCluster", status["rayClusterName"]), ("Job", name)]
            if present := [key for key in owned if key in self.objects]:
                for key in present:
                    self.delete(*key)
            else:
                kept = {key: status[key] for key in ("failed", "succeeded") if key in status}
                status.clear()
                status |= kept | ({"jobDeploymentStatus": "Suspended"} if state == "Suspending" else {})
        elif state == "Suspended" and not spec.get("suspend"):
            status["jobDeploymentStatus"] = ""
        elif state in ("Complete", "Failed") and spec["shutdownAfterJobFinishes"]:
            # handleShutdownAfterJobFinishes: the RayCluster alone goes, submitter and RayJob stay.
            over = status["endTime"] + spec.get("ttlSecondsAfterFinished", 0) <= self.now
            if over and self.find("RayCluster", status["rayClusterName"]):
                self.delete("RayCluster", status["rayClusterName"])
        self._count(rayjob, state)

    def _initialize(self, rayjob: Manifest) -> None:
        """rayjob: getOrCreateRayClusterInstance, then createK8sJobIfNeed once the cluster is ready."""
        status, name = rayjob["status"], rayjob["metadata"]["name"]
        cluster = self.find("RayCluster", status["rayClusterName"])
        if cluster is None:
            metadata = {
                "name": status["rayClusterName"],
                "labels": dict(rayjob["metadata"]["labels"]),
                "ownerReferences": [_owner(rayjob)],
            }
            spec = rayjob["spec"]["rayClusterSpec"]
            self.create({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec})
        elif self.now >= cluster["metadata"]["creationTimestamp"] + self.ready_seconds:
            if self.find("Job", name) is None:  # an existing Job is taken for the submitter
                labels = {"ray.io/originated-from-cr-name": name}
                metadata = {"name": name, "labels": labels, "ownerReferences": [_owner(rayjob)]}
                template = rayjob["spec"]["submitterPodTemplate"]
                job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}
                self.create(job | {"status": {}})
            status["jobDeploymentStatus"] = "Running"

    def _run_submitter(self, job: Manifest) -> None:
        """Submit the Ray job and follow it (common/job.go: BuildJobSubmitCommand)."""
        rayjob = self.find("RayJob", job["metadata"]["labels"].get("ray.io/originated-from-cr-name", ""))
        if rayjob is None or _finished(job) or rayjob["status"].get("jobDeploymentStatus") != "Running":
            return
        labels = job["spec"]["template"]["metadata"]["labels"]
        cluster = self.find("RayCluster", rayjob["status"]["rayClusterName"])
        if cluster is None or not self.reaches(labels, cluster, same_namespace=True):
            return
        job_id = rayjob["status"]["jobId"]
        if job_id not in self.ray_jobs:
            self.ray_jobs[job_id] = (self.now, self.outcomes.pop(0) if self.outcomes else Outcome())
            self.submissions.append((rayjob["status"]["rayClusterName"], job_id))
        begun, outcome = self.ray_jobs[job_id]
        if self.now >= begun + outcome.seconds:
            ended = "Failed" if outcome.status == "FAILED" else "Complete"
            job["status"]["conditions"] = [_condition(ended, self.now)]

    def _watch(self, rayjob: Manifest) -> None:
        """rayjob: checkSubmitterAndUpdateStatusIfNeeded, checkSubmitterFinishedTimeoutAndUpdateStatusIfNeeded."""
        status = rayjob["status"]
        job = self.find("Job", rayjob["metadata"]["name"])
        if job is None:
            return
        finished = job["status"]["conditions"][0] if _finished(job) else None
        if finished and self.now >= finished["time"] + SUBMITTER_FINISHED_SECONDS:
            reason = "JobDeploymentStatusTransitionGracePeriodExceeded"
            status |= {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": reason}
            return
        if finished and finished["type"] == "Failed":
            reason = "AppFailed" if status["jobStatus"] == "FAILED" else "SubmissionFailed"
            status |= {"jobDeploymentStatus": "Failed", "reason": reason}
            return
        cluster = self.find("RayCluster", status["rayClusterName"])
        out = any(begin <= self.now < end for begin, end in self.outages)
        if cluster is None or out or not self.reaches(self.operator, cluster):
            if self.kuberay == "1.7.0":  # recordJobStatusCheckFailure
                status.setdefault("jobStatusCheckFailureStartTime", self.now)
            return
        status.pop("jobStatusCheckFailureStartTime", None)
        if status["jobId"] not in self.ray_jobs:
            if finished:
                status |= {"jobDeploymentStatus": "Failed", "reason": "AppFailed"}
            return
        begun, outcome = self.ray_jobs[status["jobId"]]
        ended = self.now >= begun + outcome.seconds
        status["jobStatus"] = outcome.status if ended else "RUNNING"
        if ended and finished:
            failed = outcome.status == "FAILED"
            status["jobDeploymentStatus"] = "Failed" if failed else "Complete"
            status["reason"] = "AppFailed" if failed else ""

    def _suspends(self, rayjob: Manifest) -> bool:
        """rayjob: updateStatusToSuspendingIfNeeded."""
        if rayjob["spec"].get("suspend"):
            rayjob["status"]["jobDeploymentStatus"] = "Suspending"
        return bool(rayjob["spec"].get("suspend"))

    def _deadline(self, rayjob: Manifest, which: str = "active") -> bool:
        """rayjob: checkActiveDeadlineAndUpdateStatusIfNeeded and checkPreRunningDeadlineAndUpdateStatusIfNeeded."""
        seconds = rayjob["spec"].get(f"{which}DeadlineSeconds")
        if seconds is None or self.now < rayjob["status"]["startTime"] + seconds:
            return False
        reason = "DeadlineExceeded" if which == "active" else "PreRunningDeadlineExceeded"
        rayjob["status"] |= {"jobDeploymentStatus": "Failed", "reason": reason}
        return True

    def _cannot_check(self, status: Manifest) -> bool:
        """rayjob: checkJobStatusCheckTimeoutAndUpdateStatusIfNeeded, from 1.7.0 on."""
        if self.now < status.get("jobStatusCheckFailureStartTime", self.now) + STATUS_CHECK_SECONDS:
            return False
        status |= {"jobDeploymentStatus": "Failed", "reason": "JobStatusCheckTimeoutExceeded"}
        return True

    def _count(self, rayjob: Manifest, before: str) -> None:
        """rayjob: checkBackoffLimitAndUpdateStatusIfNeeded."""
        status, state = rayjob["status"], rayjob["status"].get("jobDeploymentStatus", "")
        if state == before:
            return
        self.states.append((rayjob["metadata"]["name"], state))
        if state in ("Complete", "Failed"):
            status["endTime"] = self.now
        if state == "Failed":
            status["failed"] = status.get("failed", 0) + 1
            final = {"DeadlineExceeded"} | ({"JobStatusCheckTimeoutExceeded"} if self.kuberay == "1.7.0" else set())
            if status["reason"] not in final and status["failed"] <= rayjob["spec"].get("backoffLimit", 0):
                status["jobDeploymentStatus"] = "Retrying"

    def reaches(
        self, pod: dict[str, str], cluster: Manifest, *, same_namespace: bool = False, port: int = 8265
    ) -> bool:
        """Return True if the NetworkPolicies let a pod with these labels connect to the head of a RayCluster."""
        head = cluster["spec"]["headGroupSpec"]["template"]["metadata"]["labels"]
        policies = [each["spec"] for each in self.all("NetworkPolicy") if _selects(each["spec"]["podSelector"], head)]
        return not policies or any(
            _selects(peer.get("podSelector", {}), pod) and (same_namespace or "namespaceSelector" in peer)
            for policy in policies
            for rule in policy["ingress"]
            if port in [each["port"] for each in rule.get("ports", [{"port": port}])]
            for peer in rule["from"]
        )

    def may(self, account: str, verb: str, resource: str, name: str) -> bool:
        """Return True if a RoleBinding gives a service account the right."""
        for binding in self.all("RoleBinding"):
            if account not in [subject["name"] for subject in binding["subjects"]]:
                continue
            role = self.find("Role", binding["roleRef"]["name"])
            for rule in role["rules"] if role else []:
                named = "resourceNames" not in rule or name in rule["resourceNames"]
                if "ray.io" in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"] and named:
                    return True
        return False

    def _random(self) -> str:
        return f"x{next(self._numbers):04d}"


def _invalid(rayjob: Manifest) -> str:
    """validation: ValidateRayJobMetadata and ValidateRayJobSpec, the rules that concern these manifests."""
    spec, name = rayjob["spec"], rayjob["metadata"]["name"]
    if len(name) > 47:
        return "RayJob name should be no more than 47 characters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return "RayJob name should be a valid DNS1035 label"
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    if not shutdown and (spec.get("suspend") or spec.get("ttlSecondsAfterFinished", 0) > 0):
        return "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended or to have a TTL"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            return f"{name} must be a positive integer"
    return ""


def _has_ended(rayjob: Manifest) -> bool:
    return rayjob.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")


def _owner(manifest: Manifest) -> Manifest:
    return {"kind": manifest["kind"], "name": manifest["metadata"]["name"], "uid": manifest["metadata"]["uid"]}


def _owned(manifest: Manifest, owner: Manifest) -> bool:
    uid = owner["metadata"]["uid"]
    return uid in {each["uid"] for each in manifest["metadata"].get("ownerReferences", [])}


def _condition(kind: str, now: float) -> Manifest:
    return {"type": kind, "status": "True", "time": now}


def _finished(job: Manifest) -> bool:
    return "conditions" in job["status"]


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In", each
        if labels.get(each["key"]) not in each["values"]:
            return False
    return all(labels.get(key) == value for key, value in wanted)
