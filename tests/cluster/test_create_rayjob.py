"""The nightly program against the double of Kubernetes: its request, its exit codes and its error lines."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kuberay.api_server import serve
from kuberay.double import Cluster, Outcome
from manifests import ROOT, objects

from rec_ray.cli import nightly_rayjob

ACCOUNT = "rec-ray-scheduler"


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.apply([each for each in objects("production") if each["kind"] != "CronJob"])
    return made


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(f"{ACCOUNT}\n")
    (tmp_path / "namespace").write_text("rec-ray")
    return tmp_path


def create(
    cluster: Cluster,
    credentials: Path,
    job: str = "rec-ray-1",
    template: str = "rec-ray",
    sleep: Callable[[float], Any] | None = None,
) -> int:
    with serve(cluster, ACCOUNT) as address:
        arguments = ["--template", template, "--job", job, "--uid", "u-1", "--address", address, "--seconds", "60"]
        return nightly_rayjob.main([*arguments, "--credentials", str(credentials)], sleep or cluster.advance)


def test_the_rayjob_is_the_template_with_a_name_a_label_and_an_owner(cluster: Cluster, credentials: Path) -> None:
    assert create(cluster, credentials) == 0

    made, template = cluster.find("RayJob", "rec-ray-1-run"), cluster.find("RayCronJob", "rec-ray")
    assert made is not None and template is not None
    assert made["metadata"]["labels"] == {"app.kubernetes.io/name": "rec-ray", "rec-ray/template": "rec-ray"}
    # Without blockOwnerDeletion, for which OpenShift asks for more rights.
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "rec-ray-1", "uid": "u-1"}
    assert made["metadata"]["ownerReferences"] == [owner]
    assert made["spec"] == template["spec"]["jobTemplate"] | {"suspend": False}


@pytest.mark.parametrize(
    ("outcomes", "code", "line"),
    [
        ([Outcome()], 0, "Complete SUCCEEDED"),
        ([Outcome("STOPPED")], 1, "rec-ray-1-run failed"),
        ([Outcome("FAILED"), Outcome("FAILED")], 1, "see kubectl logs job/rec-ray-1-run"),
    ],
)
def test_its_exit_code_is_the_end_of_the_rayjob(
    cluster: Cluster,
    credentials: Path,
    outcomes: list[Outcome],
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.outcomes = outcomes

    assert create(cluster, credentials) == code

    printed = capsys.readouterr()
    assert line in printed.out + printed.err
    lines = printed.out.splitlines()
    assert all(first != second for first, second in itertools.pairwise(lines)), "a line for each change"


def test_a_rayjob_that_is_deleted_meanwhile_is_an_error(
    cluster: Cluster, credentials: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(cluster, credentials, sleep=lambda _: cluster.delete("RayJob", "rec-ray-1-run")) == 3
    assert "was deleted before it ended" in capsys.readouterr().err


@pytest.mark.parametrize(("outage", "code"), [(300.0, 0), (1200.0, 3)])
def test_kubernetes_may_be_away_for_ten_minutes(
    cluster: Cluster, credentials: Path, outage: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The token is unknown meanwhile, as it is while the API server restarts behind its load balancer."""

    def sleep(seconds: float) -> None:
        cluster.advance(seconds)
        away = 120 <= cluster.now < 120 + outage
        (credentials / "token").write_text("unknown" if away else ACCOUNT)

    assert create(cluster, credentials, sleep=sleep) == code
    assert ("no state of RayJob rec-ray-1-run for 600 s" in capsys.readouterr().err) == (code == 3)


def test_a_rayjob_that_kuberay_refuses_is_a_wrong_setting(
    cluster: Cluster, credentials: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = cluster.find("RayCronJob", "rec-ray")
    assert template is not None
    template["spec"]["jobTemplate"]["activeDeadlineSeconds"] = -1

    assert create(cluster, credentials) == 2
    assert "KubeRay refuses RayJob rec-ray-1-run: activeDeadlineSeconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("job", "template", "line"),
    [
        (
            "n" * 44,
            "rec-ray",
            "would have 48 characters, KubeRay takes 47; shorten the name of the CronJob or Job by 1",
        ),
        ("rec-ray-1", "other", "403"),
    ],
)
def test_a_name_or_a_right_that_is_wrong_is_named(
    cluster: Cluster, credentials: Path, job: str, template: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(cluster, credentials, job, template) == 2
    assert line in capsys.readouterr().err
    assert cluster.all("RayJob") == []


def test_the_script_ends_with_the_exit_code_of_the_program(cluster: Cluster, credentials: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "create_rayjob.py"), "--template", "rec-ray", "--job", "night"]
    command += ["--uid", "u", "--address", "http://127.0.0.1:1", "--credentials", str(credentials)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 3
    assert ran.stderr.startswith("Kubernetes at http://127.0.0.1:1 cannot be reached: ")


def test_it_loads_nothing_large_in_its_small_pod() -> None:
    program = (
        "import sys, rec_ray.cli.nightly_rayjob; print(sorted({'ray', 'torch', 'feast', 'numpy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"
