"""The manifests of cluster/, as `kubectl apply -k` takes them, are valid, agree with each other and keep rules."""

import copy
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from manifests import CLUSTER, OVERLAYS, ROOT, objects, pods_of, the, validate

from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError, LockedError

IMAGE = "quay.io/rh-ai-quickstart/recommendation-training"
WITH_RAY = [name for name in OVERLAYS if name != "monitoring"]
NIGHTLY = ("openshift", "production")
STANDING = ("openshift-raycluster", "raycluster")
SECRET_NAME = re.compile(r"password|secret|token|access_?key", re.IGNORECASE)


def clusters_of(overlay: str) -> list[dict[str, Any]]:
    """Return the specifications of Ray clusters in an overlay."""
    found = []
    for manifest in objects(overlay):
        spec = manifest.get("spec", {})
        if manifest["kind"] == "RayCluster":
            found.append(spec)
        elif manifest["kind"] in ("RayJob", "RayCronJob"):
            found.append(spec.get("jobTemplate", spec)["rayClusterSpec"])
    return found


def test_there_are_the_overlays_that_are_promised() -> None:
    assert {"dev", "gpu", "kueue", "monitoring", "production"} <= set(OVERLAYS)
    assert {"rayjob", "rayjob-autoscaling", "raycronjob", *NIGHTLY, *STANDING} <= set(OVERLAYS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_is_what_kubernetes_and_kuberay_know(overlay: str) -> None:
    found = objects(overlay)

    assert found
    for manifest in found:
        validate(manifest)
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(names) == len(set(names))
    assert {each["metadata"].get("namespace", "rec-ray") for each in found} == {"rec-ray"}


@pytest.mark.parametrize("example", ["base/secret.example.yaml", "components/mounted-secrets/secret.example.yaml"])
def test_the_examples_of_secrets_are_secrets(example: str) -> None:
    validate(yaml.safe_load((CLUSTER / example).read_text()))


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("RayJob", ("spec", "backofLimit"), 1),
        ("RayJob", ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replica"), 2),
        ("RayJob", ("spec", "backoffLimit"), "one"),
        ("RayJob", ("spec", "rayClusterSpec", "authOptions", "mode"), "password"),
        (
            "RayJob",
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resource"),
            {},
        ),
        ("NetworkPolicy", ("spec", "egres"), []),
        ("ServiceAccount", ("automountToken",), True),
    ],
)
def test_a_wrong_manifest_is_refused(kind: str, place: tuple[Any, ...], value: Any) -> None:
    wrong = copy.deepcopy(the("rayjob", kind))
    inner: Any = wrong
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value

    with pytest.raises(jsonschema.ValidationError):
        validate(wrong)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted_and_have_memory_that_is_theirs(overlay: str) -> None:
    pods = [pod for manifest in objects(overlay) for pod in pods_of(manifest)]

    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, container["name"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], container["name"]
            assert "cpu" in resources["requests"]


@pytest.mark.parametrize("overlay", WITH_RAY)
def test_a_ray_cluster_asks_for_a_token_and_its_head_does_no_work(overlay: str) -> None:
    found = clusters_of(overlay)
    lock = (ROOT / "requirements.lock").read_text().splitlines()

    assert len(found) == 1
    cluster = found[0]
    assert f"ray=={cluster['rayVersion']}" in lock
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        ray = pod["containers"][0]
        mounts = {mount["mountPath"]: mount["name"] for mount in ray["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts.values()) <= set(volumes)
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        ports = {port["name"]: port["containerPort"] for port in ray["ports"]}
        assert ports["metrics"] == 8080
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert ray[probe]["httpGet"] == {"path": "/api/healthz", "port": "agent"}
        assert group["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == "rec-ray"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_come_from_secrets(overlay: str) -> None:
    """None is called like the RayCluster: in a Secret of that name the operator keeps the cluster's token."""
    for manifest in objects(overlay):
        for pod in pods_of(manifest):
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                for variable in container.get("env", []):
                    value = variable.get("value", "")
                    assert variable.get("valueFrom", {}).get("secretKeyRef", {}).get("name") != "rec-ray"
                    if SECRET_NAME.search(variable["name"]):
                        assert "value" not in variable or variable["name"].endswith("_FILE"), variable
                    assert not re.search(r"://[^$/@]*:[^$/@]+@", value), variable
    secrets = [each["metadata"]["name"] for each in objects(overlay) if each["kind"] == "Secret"]
    assert secrets == (["rec-ray-stores"] if overlay == "dev" else [])


def test_production_has_no_secret_in_the_environment_and_files_for_all_of_them() -> None:
    (cluster,) = clusters_of("production")
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        environment = pod["containers"][0]["env"]
        assert not [variable for variable in environment if "secretKeyRef" in variable.get("valueFrom", {})]
        files = {entry["name"]: entry["value"] for entry in environment if entry.get("name", "").endswith("_FILE")}
        folder = next(m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == "secrets")
        mounted = next(volume for volume in pod["volumes"] if volume["name"] == "secrets")["secret"]["items"]
        assert set(files) == {
            "REC_RAY__STORAGE__ACCESS_KEY_FILE",
            "REC_RAY__STORAGE__SECRET_KEY_FILE",
            "REC_RAY__DATABASE__PASSWORD_FILE",
            "AWS_SHARED_CREDENTIALS_FILE",
        }
        assert set(files.values()) == {f"{folder}/{item['path']}" for item in mounted}
    example = yaml.safe_load((CLUSTER / "components/mounted-secrets/secret.example.yaml").read_text())
    assert {item["key"] for item in mounted} | {"feature_store.yaml"} == set(example["stringData"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_accounts_have_least_rights(overlay: str) -> None:
    rights = {each["metadata"]["name"]: each["rules"] for each in objects(overlay) if each["kind"] == "Role"}
    only_rayjobs = [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "list", "create"]},
        {"apiGroups": ["ray.io"], "resources": ["raycronjobs"], "resourceNames": ["rec-ray"], "verbs": ["get"]},
    ]

    assert rights == ({"rec-ray-scheduler": only_rayjobs} if overlay in NIGHTLY else {})
    assert not [each for each in objects(overlay) if each["kind"].startswith("Cluster")]
    for manifest in objects(overlay):
        for pod in pods_of(manifest):
            token = pod.get("automountServiceAccountToken", True)
            needed = pod.get("serviceAccountName") in ("rec-ray-autoscaler", "rec-ray-scheduler")
            proxied = overlay.startswith("openshift") and pod["containers"][0]["name"] == "ray-head"
            assert token == (needed or proxied)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_policy_lets_dns_and_the_pods_of_the_cluster_through(overlay: str) -> None:
    policy = the(overlay, "NetworkPolicy")["spec"]
    ours = {"matchLabels": {"app.kubernetes.io/name": "rec-ray"}}

    assert policy["podSelector"] == ours
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert {"from": [{"podSelector": ours}]} in policy["ingress"]
    assert {"to": [{"podSelector": ours}]} in policy["egress"]
    dns = {(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule.get("ports", [])}
    assert {("UDP", 53), ("TCP", 53)} <= dns
    settings = load_settings(CLUSTER / "base" / "rec_ray.yaml", environ={})
    for address in (settings.storage.endpoint, settings.database.url):
        assert ("TCP", int(str(address).split(":")[-1].split("/")[0])) in dns, address


@pytest.mark.parametrize("overlay", [name for name in WITH_RAY if name not in STANDING])
def test_a_rayjob_ends_is_cleared_away_and_is_tried_twice_as_one_run(overlay: str) -> None:
    """The walk through the double of KubeRay is in test_kuberay.py."""
    kind = "RayCronJob" if overlay in (*NIGHTLY, "raycronjob") else "RayJob"
    manifest = the(overlay, kind)
    spec = manifest["spec"].get("jobTemplate", manifest["spec"])

    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] == 1
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert 0 < spec["ttlSecondsAfterFinished"] <= 300, "until the RayCluster with its GPUs is deleted"
    words = spec["entrypoint"].removeprefix("env ").replace(" --again", "").split()
    mode, script, command, option, settings = words
    assert (mode, script, command, option) == ("MODE=rayjob", "/app/entrypoint.sh", "run", "--config")
    assert settings == ("/shop/project/rec_ray.yaml" if overlay == "dev" else "/etc/rec_ray/rec_ray.yaml")
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    (name,) = [variable for variable in head["env"] if variable["name"] == "RAY_CLUSTER_NAME"]
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['ray.io/cluster']"
    assert len(manifest["metadata"]["name"]) <= (36 if kind == "RayCronJob" else 47)


def test_the_nightly_job_outlives_every_attempt_and_ends_before_the_next_night() -> None:
    cron = the("production", "CronJob")["spec"]
    job = cron["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    template = the("production", "RayCronJob")["spec"]

    assert cron["concurrencyPolicy"] == "Forbid"
    assert template["suspend"] is True
    assert not [each for each in objects("production") if each["kind"] == "RayJob"], "a queue would admit it"
    attempts = template["jobTemplate"]["backoffLimit"] + 1
    assert attempts * template["jobTemplate"]["activeDeadlineSeconds"] < job["activeDeadlineSeconds"] < 24 * 3600
    (codes,) = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes["containerName"] == pod["containers"][0]["name"]
    assert codes["values"] == [1, ConfigError.exit_code, LockedError.exit_code], "a new pod would change nothing"
    (binding,) = [each for each in objects("production") if each["kind"] == "RoleBinding"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": pod["serviceAccountName"], "namespace": "rec-ray"}
    ]


def size(text: str) -> float:
    """Return the bytes of a quantity such as 5Gi."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return float(text[:-2]) * units[text[-2:]] if text[-2:] in units else float(text)


@pytest.mark.parametrize("overlay", WITH_RAY)
def test_the_object_store_is_in_memory_and_what_spills_has_a_reserved_place(overlay: str) -> None:
    """Ray takes /tmp for a store larger than /dev/shm; spilled objects and logs are below /tmp/ray."""
    (cluster,) = clusters_of(overlay)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        ray = pod["containers"][0]
        mounts = {mount["mountPath"]: mount["name"] for mount in ray["volumeMounts"]}
        volumes = {volume["name"]: volume.get("emptyDir", {}) for volume in pod["volumes"]}
        store = float(group["rayStartParams"]["object-store-memory"])
        memory = size(ray["resources"]["limits"]["memory"])
        assert store < 0.95 * size(volumes[mounts["/dev/shm"]]["sizeLimit"])
        assert store < 0.35 * memory, "what lies in /dev/shm counts as the pod's memory"
        scratch = volumes[mounts["/tmp"]]
        assert "medium" not in scratch, "on disk"
        resources = ray["resources"]
        assert size(scratch["sizeLimit"]) < size(resources["requests"]["ephemeral-storage"])
        assert resources["requests"]["ephemeral-storage"] == resources["limits"]["ephemeral-storage"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_our_containers_write_only_to_volumes(overlay: str) -> None:
    for manifest in objects(overlay):
        for pod in pods_of(manifest):
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                if not container["image"].startswith(IMAGE):
                    continue
                assert container["securityContext"]["readOnlyRootFilesystem"] is True, container["name"]
                home = {entry["name"]: entry.get("value") for entry in container.get("env", [])}.get("HOME")
                mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
                assert home is None or home in mounts, f"{container['name']} writes to HOME"


def test_autoscaling_has_bounds_and_does_not_meet_kueue() -> None:
    (grows,), (fixed,) = clusters_of("rayjob-autoscaling"), clusters_of("kueue")
    group = grows["workerGroupSpecs"][0]

    assert grows["enableInTreeAutoscaling"] is True
    assert grows["autoscalerOptions"]["version"] == "v2"
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    for pod in pods_of(grows):
        assert pod["restartPolicy"] == "Never"
    assert "enableInTreeAutoscaling" not in fixed
    queued = the("kueue", "RayJob")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "rec-ray"
    assert queued["spec"]["suspend"] is True


def test_the_gpu_overlay_asks_for_gpus_and_says_so_to_the_program() -> None:
    (cluster,) = clusters_of("gpu")
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    environment = {variable["name"]: variable["value"] for variable in head["env"] if "value" in variable}

    assert worker["resources"]["limits"]["nvidia.com/gpu"] == worker["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    settings = load_settings(CLUSTER / "base" / "rec_ray.yaml", environ=environment)
    assert settings.train.use_gpu
    assert settings.train.num_workers <= cluster["workerGroupSpecs"][0]["replicas"], "one GPU for each worker"


def expand(text: str, environment: dict[str, str]) -> str:
    """Replace $(NAME) as Kubernetes does."""
    return re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], text)


@pytest.mark.parametrize("overlay", ["openshift", "openshift-raycluster"])
def test_openshift_gives_the_ids_the_keys_and_the_certificates(overlay: str) -> None:
    """restricted-v2 refuses ids outside of the namespace's range; a data connection has keys of its own names."""
    text = yaml.safe_dump_all(objects(overlay))
    example = yaml.safe_load((CLUSTER / "components/openshift/data-connection.example.yaml").read_text())
    validate(example)
    (cluster,) = clusters_of(overlay)

    assert not re.search(r"runAsUser|runAsGroup|fsGroup|supplementalGroups", text)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        entries = pod["containers"][0]["env"]
        keys = {
            entry["name"]: entry["valueFrom"]["secretKeyRef"]["key"]
            for entry in entries
            if entry.get("valueFrom", {}).get("secretKeyRef", {}).get("name") == example["metadata"]["name"]
        }
        assert set(keys.values()) == set(example["stringData"])
        # Kubernetes expands $(NAME) from the entries before.
        environment = {name: example["stringData"][key] for name, key in keys.items()}
        for entry in entries:
            if "value" in entry:
                environment[entry["name"]] = expand(entry["value"], environment)
        environment["REC_RAY__DATABASE__PASSWORD"] = "x"
        ca_bundle = environment.pop("REC_RAY__STORAGE__CA_BUNDLE")
        settings = load_settings(CLUSTER / "base" / "rec_ray.yaml", environ=environment)
        assert settings.storage.url == "s3://CHANGE-ME/models"
        assert settings.storage.endpoint == "https://s3.openshift-storage.svc"
        assert settings.storage.access_key is not None and settings.storage.secret_key is not None
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        (volume,) = [each for each in pod["volumes"] if each["name"] == mounts[str(Path(ca_bundle).parent)]]
        certificates = the(overlay, "ConfigMap", volume["configMap"]["name"])["metadata"]["annotations"]
        assert certificates == {"service.beta.openshift.io/inject-cabundle": "true"}
        assert Path(ca_bundle).name == "service-ca.crt", "the key that OpenShift writes"


def test_the_route_leads_to_the_dashboard_over_tls_and_its_router_is_admitted() -> None:
    route = the("openshift-raycluster", "Route")["spec"]
    (cluster,) = clusters_of("openshift-raycluster")
    ports = {
        port["name"]: port["containerPort"]
        for port in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    }
    (router,) = [
        rule
        for rule in the("openshift-raycluster", "NetworkPolicy")["spec"]["ingress"]
        if "network.openshift.io/policy-group" in str(rule)
    ]

    assert route["to"] == {"kind": "Service", "name": "rec-ray-head-svc"}
    assert route["tls"] == {"termination": "edge", "insecureEdgeTerminationPolicy": "Redirect"}
    assert [port["port"] for port in router["ports"]] == [ports[route["port"]["targetPort"]]]


def test_kind_gets_the_stores_that_the_settings_name() -> None:
    services = {each["metadata"]["name"]: each["spec"] for each in objects("dev") if each["kind"] == "Service"}
    head = clusters_of("dev")[0]["headGroupSpec"]["template"]["spec"]
    environment = {entry["name"]: entry["value"] for entry in head["containers"][0]["env"] if "value" in entry}
    settings = load_settings(CLUSTER / "base" / "rec_ray.yaml", environ=environment)
    bucket = the("dev", "Job", "make-bucket")["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    secret = the("dev", "Secret", "rec-ray-stores")["data"]

    assert settings.storage.endpoint == f"http://minio:{services['minio']['ports'][0]['port']}"
    assert settings.storage.url.startswith(f"s3://{bucket.split('/')[1]}/")
    assert f"@postgres:{services['postgres']['ports'][0]['port']}/" in settings.database.url
    assert "pgvector" in the("dev", "Deployment", "postgres")["spec"]["template"]["spec"]["containers"][0]["image"]
    example = yaml.safe_load((CLUSTER / "base/secret.example.yaml").read_text())
    assert set(secret) == set(example["stringData"])
    script = the("dev", "ConfigMap", "shop")["data"]["make_shop.sh"]
    checked = subprocess.run(
        [str(Path(sys.executable).with_name("shellcheck")), "--shell=bash", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(("code", "says"), [(1, "no such view"), (0, "applied")])
def test_the_shop_shows_the_error_of_feast_and_does_not_retry_it(code: int, says: str, tmp_path: Path) -> None:
    script = the("dev", "ConfigMap", "shop")["data"]["make_shop.sh"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        for there, here in (
            ("/dev/tcp/postgres/5432", f"/dev/tcp/127.0.0.1/{server.getsockname()[1]}"),
            ("/shop/", f"{tmp_path}/shop/"),
            ("/etc/rec_ray/", f"{tmp_path}/settings/"),
        ):
            assert there in script
            script = script.replace(there, here)
        repo = tmp_path / "shop" / "project" / "feature_repo"
        for folder in (tmp_path / "bin", tmp_path / "shop", tmp_path / "settings" / "feature_repo"):
            folder.mkdir(parents=True)
        (tmp_path / "settings" / "feature_repo" / "feature_store.yaml").write_text("sslmode: require\n")
        programs = {
            "rec-ray": f'[[ "$*" == "init {tmp_path}/shop/project" ]] && mkdir -p {repo}',
            "feast": f'echo applied; echo "no such view" >&2; exit {code}',
        }
        for name, text in programs.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        ran = subprocess.run(
            ["bash", "-c", script],
            env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert ran.returncode == code
    assert says in ran.stdout + ran.stderr
    assert (repo / "feature_store.yaml").read_text() == "sslmode: disable\n"


def test_the_settings_of_the_cluster_are_settings() -> None:
    pod = clusters_of("raycluster")[0]["headGroupSpec"]["template"]["spec"]
    items = next(volume for volume in pod["volumes"] if volume["name"] == "settings")["configMap"]["items"]
    data = the("raycluster", "ConfigMap")["data"]
    settings = load_settings(CLUSTER / "base" / "rec_ray.yaml", environ={})
    feature_store = yaml.safe_load(data["feature_store.yaml"])

    assert {item["key"] for item in items} == set(data)
    assert f"{Path(settings.feast.repo).name}/feature_store.yaml" in {item["path"] for item in items}
    assert settings.storage.url.startswith("s3://")
    assert feature_store["offline_store"]["type"] == "duckdb"
    assert feature_store["online_store"]["password"] == "${REC_RAY__DATABASE__PASSWORD}"


def test_image_ray_and_python_are_the_same_everywhere() -> None:
    """The tag is that of the program's version; it is stated in one manifest and the images of all pods follow."""
    from rec_ray import __version__

    # The chart's copy of overlays/production is compared with it in test_helm.py.
    manifests = [path.read_text() for path in CLUSTER.rglob("*.yaml") if "helm" not in path.parts]
    assert sum(text.count(f"{IMAGE}:") for text in manifests) == 1, "stated once"
    for overlay in OVERLAYS:
        ours = {
            container["image"]
            for manifest in objects(overlay)
            for pod in pods_of(manifest)
            for container in [*pod["containers"], *pod.get("initContainers", [])]
            if container["image"].startswith(IMAGE) or "/" not in container["image"]
        }
        tag = f"{__version__}-cu130" if overlay == "gpu" else __version__
        assert ours == {f"{IMAGE}:{tag}"}, overlay
    assert sum(len(re.findall(r"^\s*rayVersion:", text, re.M)) for text in manifests) == 1
    project = (ROOT / "pyproject.toml").read_text()
    containerfile = (ROOT / "Containerfile").read_text()
    pythons = {
        *re.findall(r"ubi9/python-(\d)(\d+)", containerfile),
        *re.findall(r"python(\d)\.(\d+)", containerfile),
        *re.findall(r'requires-python = ">=(\d)\.(\d+)', project),
        *re.findall(r'^target-version = "py(\d)(\d+)"', project, re.M),
        *re.findall(r'^python_version = "(\d)\.(\d+)"', project, re.M),
        *re.findall(r"^PYTHON \?= python(\d)\.(\d+)", (ROOT / "Makefile").read_text(), re.M),
    }
    assert pythons == {("3", "11")}
