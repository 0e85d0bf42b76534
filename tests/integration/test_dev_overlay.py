"""The scripts, settings and entrypoint of `kubectl apply -k cluster/overlays/dev`, started on this machine.

There is no Kubernetes here. Real servers stand for MinIO and PostgreSQL, and folders for the volumes; script,
environment and entrypoint are those of the rendered manifests, in which only paths and addresses are changed.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from manifests import ROOT, the
from servers import PostgreSQL, SeaweedFS

BIN = Path(sys.executable).parent

pytestmark = pytest.mark.usefixtures("processes")


def test_the_system_for_kind_makes_a_shop_and_publishes_recommendations(
    tmp_path: Path, seaweedfs: SeaweedFS, postgresql: PostgreSQL
) -> None:
    postgresql.make_database("dev")
    endpoint, database = f"127.0.0.1:{postgresql.port}", f"127.0.0.1:{postgresql.port}/dev"

    def here(text: str) -> str:
        """Return a text of the manifests with the paths and addresses of this test."""
        for there, instead in (
            ("/dev/tcp/postgres/5432", f"/dev/tcp/127.0.0.1/{postgresql.port}"),
            ("/shop", str(tmp_path / "shop")),
            ("/etc/rec_ray", str(tmp_path / "settings")),
            ("/app/", f"{ROOT}/"),
            ("postgres:5432/rec_ray", database),
            ("host: postgres", "host: 127.0.0.1"),
            ("port: 5432", f"port: {postgresql.port}"),
            ("database: rec_ray", "database: dev"),
            ("s3://recommendations/", f"s3://{seaweedfs.bucket}/dev/"),
            ("http://minio:9000", seaweedfs.endpoint),
        ):
            text = text.replace(there, instead)
        return text

    job = the("dev", "RayJob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (tmp_path / "shop").mkdir()
    (tmp_path / "settings" / "feature_repo").mkdir(parents=True)
    feature_store = the("dev", "ConfigMap")["data"]["feature_store.yaml"]
    (tmp_path / "settings" / "feature_repo" / "feature_store.yaml").write_text(here(feature_store))
    secrets = {
        "storage-access-key": seaweedfs.access_key,
        "storage-secret-key": seaweedfs.secret_key,
        "database-password": postgresql.password,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "REC_RAY_"))}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", "HOME": str(tmp_path)}
    script = here(the("dev", "ConfigMap", "shop")["data"]["make_shop.sh"])
    (init,) = head["initContainers"]
    given = {entry["name"]: secrets[entry["valueFrom"]["secretKeyRef"]["key"]] for entry in init["env"][:1]}
    for _ in range(2):  # a pod that starts again finds the shop and applies it once more
        made = subprocess.run(
            ["bash", "-c", script], env={**environment, **given}, capture_output=True, text=True, timeout=300
        )
        assert made.returncode == 0, made.stdout + made.stderr

    for entry in head["containers"][0]["env"]:
        source = entry.get("valueFrom", {})
        if "secretKeyRef" in source:
            environment[entry["name"]] = secrets[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            environment[entry["name"]] = f"{job['metadata']['name']}-x7k2p"  # as KubeRay calls the cluster
        elif entry["name"] not in ("HOME", "RAY_JOB_STOP_WAIT_TIME_S"):
            environment[entry["name"]] = here(entry["value"])
    small = {"REC_RAY__TRAIN__EPOCHS": "1", "REC_RAY__RAY__NUM_CPUS": "2", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    small["REC_RAY__RAY__OBJECT_STORE_MEMORY"] = "300000000"
    command = shlex.split(here(job["spec"]["entrypoint"]))
    ran = subprocess.run(
        command, env={**environment, **small}, capture_output=True, text=True, timeout=500, cwd=tmp_path
    )

    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-6000:]
    with postgresql.engine("dev").connect() as connection:
        row = connection.execute(sa.text("SELECT version, run_id FROM model_version")).one()
        vectors = connection.scalar(sa.text("SELECT count(*) FROM rec_ray_item_embedding"))
    assert tuple(row) == ("1", job["metadata"]["name"])
    assert vectors and vectors > 0
    lines = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
    steps = [line for line in lines if line.get("event") == "end"]
    assert {line["run_id"] for line in steps} == {"rec-ray"}
    assert {line["step"]: line.get("version") for line in steps}["update_features"] == "1"
    for secret in secrets.values():
        assert secret not in ran.stdout + ran.stderr
    assert endpoint in environment["REC_RAY__DATABASE__URL"]
