"""Every overlay walks through the double of KubeRay: creation, success, failure, retry, clean-up."""

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kuberay.api_server import serve
from kuberay.double import HELM, KUSTOMIZE, Cluster, Outcome, RefusedError
from manifests import KUBERAY, ROOT, objects

from rec_ray.cli import nightly_rayjob

HOUR, DAY = 3600, 86400
ONCE = ("dev", "gpu", "kueue", "rayjob", "rayjob-autoscaling")
NAMED_BY_ITSELF = {"app.kubernetes.io/name": "operator-of-ours", "app.kubernetes.io/component": "kuberay-operator"}


def start(overlay: str, kuberay: str, **more: Any) -> Cluster:
    queues = {"rec-ray": 0.0} if overlay == "kueue" else {}
    cluster = Cluster(kuberay, **{"queues": queues, **more})
    cluster.apply(objects(overlay))
    return cluster


def run_id(cluster: str) -> str:
    """Return the id under which entrypoint.sh starts the run on a RayCluster."""
    environment = {"PATH": os.environ["PATH"], "MODE": "rayjob", "RAY_CLUSTER_NAME": cluster, "HOME": "/tmp"}
    command = [str(ROOT / "entrypoint.sh"), "bash", "-c", 'echo "$REC_RAY_RUN_ID"']
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


class Nights:
    """The production overlay on the double, whose CronJob's pod runs the real program against it."""

    def __init__(self, folder: Path, kuberay: str = "1.7.0", **more: Any) -> None:
        self.cluster = start("production", kuberay, **more)
        (self.cron,) = self.cluster.all("CronJob")
        self.folder = folder
        account = self.cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
        (folder / "token").write_text(account)
        (folder / "namespace").write_text("rec-ray")
        self.account = account

    def run(self, job: dict[str, Any], *options: str, until: float = 1e9) -> int:
        """Run the pod of a Job to its end, or until the clock shows a time, where the pod is evicted."""
        program, script, *arguments = self.cluster.command_of(job)
        assert (program, script) == ("python", "/app/jobs/create_rayjob.py")
        deadline = self.cluster.now + job["spec"]["activeDeadlineSeconds"]

        def sleep(seconds: float) -> None:
            if self.cluster.now >= until:
                raise KeyboardInterrupt
            assert self.cluster.now < deadline, "the Job's deadline ends the pod before its RayJob ends"
            self.cluster.advance(seconds)

        with serve(self.cluster, self.account) as address:
            where = ["--address", address, "--credentials", str(self.folder), "--seconds", "60", *options]
            return nightly_rayjob.main([*arguments, *where], sleep)

    def night(self, *options: str) -> int:
        """Fire the CronJob, run its pod, and let the rest of the day pass."""
        begun = self.cluster.now
        job = self.cluster.fire(self.cron)
        assert job is not None
        code = self.run(job, *options)
        self.cluster.end_job(job, failed=code != 0)
        self.cluster.advance(begun + DAY - self.cluster.now)
        return code


@pytest.mark.parametrize("kuberay", KUBERAY)
@pytest.mark.parametrize("overlay", ONCE)
def test_a_rayjob_runs_and_its_cluster_goes_within_minutes(overlay: str, kuberay: str) -> None:
    cluster = start(overlay, kuberay)
    cluster.advance(HOUR)

    rayjob = cluster.find("RayJob")
    assert rayjob is not None
    assert (rayjob["status"]["jobDeploymentStatus"], rayjob["status"]["jobStatus"]) == ("Complete", "SUCCEEDED")
    assert len(cluster.submissions) == 1
    ((begun, ended),) = cluster.lifetimes.values()
    assert ended - rayjob["status"]["endTime"] <= 130
    assert ended - begun < 15 * 60
    assert cluster.find("Job", "rec-ray"), "the submitter's log stays"


@pytest.mark.parametrize("kuberay", KUBERAY)
@pytest.mark.parametrize("overlay", ONCE)
def test_a_failed_attempt_is_repeated_once_as_the_same_run(overlay: str, kuberay: str) -> None:
    cluster = start(overlay, kuberay, outcomes=[Outcome("FAILED")])
    cluster.advance(2 * HOUR)

    rayjob = cluster.find("RayJob")
    assert rayjob is not None and rayjob["status"]["jobDeploymentStatus"] == "Complete"
    assert [state for _, state in cluster.states if state in ("Failed", "Complete")] == ["Failed", "Complete"]
    clusters = [name for name, _ in cluster.submissions]
    assert len(set(clusters)) == 2 and [run_id(name) for name in clusters] == ["rec-ray", "rec-ray"]
    assert all(len(lifetime) == 2 for lifetime in cluster.lifetimes.values()), "both clusters are deleted"


@pytest.mark.parametrize(
    ("outcomes", "ready_seconds", "reason", "submitted"),
    [
        ([Outcome("FAILED"), Outcome("FAILED")], 60, "SubmissionFailed", 2),
        ([Outcome("STOPPED")], 60, "", 1),
        ([Outcome(seconds=9 * HOUR)], 60, "DeadlineExceeded", 1),
        ([], 9 * HOUR, "PreRunningDeadlineExceeded", 0),
    ],
)
@pytest.mark.parametrize("kuberay", KUBERAY)
def test_a_rayjob_always_ends(
    outcomes: list[Outcome], ready_seconds: float, reason: str, submitted: int, kuberay: str
) -> None:
    cluster = start("rayjob", kuberay, outcomes=copy.deepcopy(outcomes), ready_seconds=ready_seconds)
    cluster.advance(9 * HOUR)

    rayjob = cluster.find("RayJob")
    assert rayjob is not None
    assert rayjob["status"]["jobDeploymentStatus"] in ("Failed", "Complete")
    assert rayjob["status"]["reason"] in (reason, "AppFailed" if reason == "SubmissionFailed" else reason)
    assert len(cluster.submissions) == submitted
    assert cluster.all("RayCluster") == []


def test_a_long_ttl_would_keep_the_cluster_and_delete_no_rayjob() -> None:
    """The double shows the defect: ttlSecondsAfterFinished was a day, and was taken for that of the RayJob."""
    manifests = copy.deepcopy(objects("gpu"))
    (rayjob,) = [each for each in manifests if each["kind"] == "RayJob"]
    rayjob["spec"]["ttlSecondsAfterFinished"] = DAY
    cluster = Cluster()
    cluster.apply(manifests)
    cluster.advance(DAY)
    assert len(cluster.all("RayCluster")) == 1, "with its GPUs"
    cluster.advance(HOUR)

    assert cluster.all("RayCluster") == [] and cluster.find("RayJob", "rec-ray")


@pytest.mark.parametrize("operator", [HELM, KUSTOMIZE, NAMED_BY_ITSELF])
@pytest.mark.parametrize("kuberay", KUBERAY)
def test_the_network_policy_admits_the_operator_of_every_installation(operator: dict[str, str], kuberay: str) -> None:
    cluster = start("rayjob", kuberay, operator=operator)
    cluster.advance(HOUR)

    assert cluster.states[-1] == ("rec-ray", "Complete")
    (template,) = [each for each in objects("rayjob") if each["kind"] == "RayJob"]
    head = {"spec": template["spec"]["rayClusterSpec"]}
    assert not cluster.reaches({"app.kubernetes.io/name": "grafana"}, head)
    assert not cluster.reaches(operator, head, port=6379)


@pytest.mark.parametrize("kuberay", KUBERAY)
def test_an_operator_that_is_not_admitted_turns_success_into_failure(kuberay: str) -> None:
    """The double shows the defect: the policy admitted the labels of the Helm chart alone."""
    manifests = copy.deepcopy(objects("rayjob"))
    (policy,) = [each for each in manifests if each["kind"] == "NetworkPolicy"]
    for rule in policy["spec"]["ingress"]:
        rule["from"] = [peer for peer in rule["from"] if "namespaceSelector" not in peer or "podSelector" not in peer]
    cluster = Cluster(kuberay, KUSTOMIZE)
    cluster.apply(manifests)
    cluster.advance(2 * HOUR)

    rayjob = cluster.find("RayJob")
    assert rayjob is not None and rayjob["status"]["jobDeploymentStatus"] == "Failed"
    assert all(begun + outcome.seconds < cluster.now for begun, outcome in cluster.ray_jobs.values())


@pytest.mark.parametrize("kuberay", KUBERAY)
def test_a_dashboard_that_is_away_for_a_minute_does_not_matter(kuberay: str) -> None:
    cluster = start("rayjob", kuberay, outages=[(300.0, 360.0)])
    cluster.advance(HOUR)

    assert cluster.states[-1] == ("rec-ray", "Complete") and len(cluster.submissions) == 1


@pytest.mark.parametrize("kuberay", KUBERAY)
def test_a_raycronjob_starts_a_run_of_its_own_every_night(kuberay: str) -> None:
    cluster = start("raycronjob", kuberay)
    cluster.advance(2 * DAY + HOUR)

    rayjobs = cluster.all("RayJob")
    assert [each["status"]["jobDeploymentStatus"] for each in rayjobs] == ["Complete", "Complete"]
    assert len({run_id(name) for name, _ in cluster.submissions}) == 2
    assert cluster.all("RayCluster") == []


def test_a_time_zone_is_refused_by_1_6_2_and_accepted_by_1_7_0() -> None:
    (cron,) = [copy.deepcopy(each) for each in objects("raycronjob") if each["kind"] == "RayCronJob"]
    cron["spec"]["timeZone"] = "Etc/UTC"

    Cluster("1.7.0").create(cron)
    with pytest.raises(RefusedError, match="timeZone"):
        Cluster("1.6.2").create(cron)


@pytest.mark.parametrize("kuberay", KUBERAY)
def test_production_submits_a_run_every_night_and_old_rayjobs_go(kuberay: str, tmp_path: Path) -> None:
    nights = Nights(tmp_path, kuberay)
    assert nights.cluster.all("RayJob") == [], "nothing runs before the first night"

    assert [nights.night() for _ in range(5)] == [0] * 5

    assert len(nights.cluster.submissions) == 5
    assert len({run_id(name) for name, _ in nights.cluster.submissions}) == 5
    left = [each["metadata"]["name"] for each in nights.cluster.all("RayJob")]
    assert len(left) == nights.cron["spec"]["successfulJobsHistoryLimit"]
    assert nights.cluster.all("RayCluster") == []
    assert all(name.endswith("-run") and len(name) <= 47 for name in left)


@pytest.mark.parametrize("kuberay", KUBERAY)
def test_a_rayjob_named_like_its_job_would_never_be_submitted(
    kuberay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double shows the defect: KubeRay takes the CronJob's Job for the submitter and waits until the deadline."""
    monkeypatch.setattr(nightly_rayjob, "SUFFIX", "")
    nights = Nights(tmp_path, kuberay)

    assert nights.night() == 1
    assert nights.cluster.submissions == []


def test_two_attempts_of_full_length_end_before_the_pod_does(tmp_path: Path) -> None:
    almost = 4 * HOUR - 120
    nights = Nights(tmp_path, outcomes=[Outcome("FAILED", almost), Outcome("SUCCEEDED", almost)])

    assert nights.night() == 0
    assert len(nights.cluster.submissions) == 2


def test_a_replaced_pod_follows_the_rayjob_of_its_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nights = Nights(tmp_path)
    job = nights.cluster.fire(nights.cron)
    assert job is not None

    with pytest.raises(KeyboardInterrupt):
        nights.run(job, until=200)
    assert nights.run(job) == 0

    assert len(nights.cluster.submissions) == 1
    assert "exists already" in capsys.readouterr().out


def test_a_queue_admits_the_run_and_never_the_template(tmp_path: Path) -> None:
    """A namespace with a LocalQueue named default gets every RayJob; the template is none."""
    nights = Nights(tmp_path, queues={"default": 0.0, "nightly": 6.0 * HOUR})
    nights.cluster.advance(60)
    assert nights.cluster.all("RayJob") == [] and nights.cluster.lifetimes == {}

    assert nights.night("--queue", "nightly") == 0

    ((begun, _),) = nights.cluster.lifetimes.values()
    assert begun >= 6 * HOUR, "not before the queue admits it"


def test_a_suspended_rayjob_with_a_queue_would_be_started() -> None:
    """The double shows the defect: the template was a RayJob that carried the queue."""
    (template,) = [copy.deepcopy(each) for each in objects("rayjob") if each["kind"] == "RayJob"]
    template["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "nightly"
    template["spec"]["suspend"] = True
    cluster = Cluster(queues={"nightly": 0.0})
    cluster.create(template)
    cluster.advance(HOUR)

    assert len(cluster.submissions) == 1


def test_a_night_whose_predecessor_still_waits_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nights = Nights(tmp_path, queues={"nightly": 30.0 * HOUR})
    job = nights.cluster.fire(nights.cron)
    assert job is not None
    with pytest.raises(KeyboardInterrupt):
        nights.run(job, "--queue", "nightly", until=20 * HOUR)
    assert nights.cluster.fire(nights.cron) is None, "concurrencyPolicy: Forbid"
    nights.cluster.end_job(job, failed=True)
    nights.cluster.advance(4 * HOUR)

    second = nights.cluster.fire(nights.cron)
    assert second is not None and nights.run(second) == 7

    assert "of an earlier night is Suspended" in capsys.readouterr().err
    assert len(nights.cluster.all("RayJob")) == 1


def test_applying_a_finished_rayjob_again_submits_it_and_allows_a_new_run() -> None:
    """`--again` gives the second one an id of its own, see test_run_names.py; a nightly run must not have it."""
    cluster = start("rayjob", "1.7.0")
    cluster.advance(HOUR)
    cluster.apply(objects("rayjob"))
    cluster.advance(HOUR)
    assert len(cluster.submissions) == 1, "an unchanged RayJob stays finished"
    cluster.delete("RayJob", "rec-ray")
    cluster.apply(objects("rayjob"))
    cluster.advance(HOUR)

    assert [run_id(name) for name, _ in cluster.submissions] == ["rec-ray", "rec-ray"]
    for overlay in (*ONCE, "openshift", "production", "raycronjob"):
        for found in objects(overlay):
            spec = found.get("spec", {})
            if found["kind"] in ("RayJob", "RayCronJob"):
                words = spec.get("jobTemplate", spec)["entrypoint"].split()
                assert ("--again" in words) == (overlay in ONCE), overlay
