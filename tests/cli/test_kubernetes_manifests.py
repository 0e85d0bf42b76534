"""`rec-ray render` gives the same as `kubectl kustomize` with the overlays, changed by the settings and the options."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import BASE, ROOT, objects, validate

from rec_ray.cli.kubernetes_manifests import RenderOptions, render_manifests
from rec_ray.cli.main import main
from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError

SAME = {
    "rayjob": ("rayjob", RenderOptions(name="rec-ray")),
    "rayjob-autoscaling": ("rayjob", RenderOptions(name="rec-ray", grow_to=4)),
    "kueue": ("rayjob", RenderOptions(name="rec-ray", queue="rec-ray")),
    "raycluster": ("raycluster", RenderOptions()),
    "raycronjob": ("raycronjob", RenderOptions()),
    "gpu": ("rayjob", RenderOptions(name="rec-ray")),
}
"""Overlay -> the kind and options that give the same."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the settings of cluster/base."""
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "rec_ray.yaml").write_text((BASE / "rec_ray.yaml").read_text())
    (tmp_path / "feature_repo" / "feature_store.yaml").write_text((BASE / "feature_store.yaml").read_text())
    return tmp_path


def render(kind: str, project: Path, *overrides: str, **wishes: Any) -> list[dict[str, Any]]:
    settings = load_settings(project / "rec_ray.yaml", overrides, environ={"REC_RAY__STORAGE__SECRET_KEY": "hush-hush"})
    text = render_manifests(kind, settings, RenderOptions(**wishes))
    assert "hush-hush" not in text and "*****" not in text
    found = list(yaml.safe_load_all(text))
    for manifest in found:
        validate(manifest)
    return found


def without_settings(found: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the objects by kind and name, with the texts of the ConfigMap read and its hash cut off."""
    text = json.dumps(found)
    for manifest in found:
        if manifest["kind"] == "ConfigMap":
            text = text.replace(f'"{manifest["metadata"]["name"]}"', '"rec-ray"')
    by_name = {}
    for manifest in json.loads(text):
        if manifest["kind"] == "ConfigMap":
            manifest["metadata"].pop("labels", None)
            manifest["data"] = {name: yaml.safe_load(content) for name, content in manifest["data"].items()}
            for setting in ("use_gpu", "num_workers"):
                manifest["data"]["rec_ray.yaml"].get("train", {}).pop(setting, None)
        by_name[manifest["kind"], manifest["metadata"]["name"]] = manifest
    return by_name


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the specification of the RayCluster in a manifest."""
    spec = manifest["spec"]
    found: dict[str, Any] = (
        spec if manifest["kind"] == "RayCluster" else spec.get("jobTemplate", spec)["rayClusterSpec"]
    )
    return found


def train_of(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(config["data"]["rec_ray.yaml"])["train"]
    return found


def workers_that_train(found: list[dict[str, Any]]) -> Any:
    """Return train.num_workers as the driver reads it: the environment of the head precedes the settings file."""
    (cluster,) = [cluster_of(each) for each in found if each["kind"] in ("RayJob", "RayCronJob", "RayCluster")]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry.get("value") for entry in head["env"]}
    (config,) = [each for each in found if each["kind"] == "ConfigMap"]
    workers = environment.get("REC_RAY__TRAIN__NUM_WORKERS")
    return yaml.safe_load(workers) if workers else train_of(config)["num_workers"]


def without_variable(cluster: dict[str, Any], name: str) -> None:
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"] = [entry for entry in head["env"] if entry["name"] != name]


@pytest.mark.parametrize("overlay", SAME)
def test_it_gives_the_same_as_kustomize(overlay: str, project: Path) -> None:
    kind, wishes = SAME[overlay]
    gpu = ["train.use_gpu=true"] if overlay == "gpu" else []
    settings = load_settings(project / "rec_ray.yaml", gpu, environ={})
    found = list(yaml.safe_load_all(render_manifests(kind, settings, wishes)))
    expected = without_settings(objects(overlay))
    if overlay == "rayjob-autoscaling":
        # The overlay has the range of workers in the environment, and the rendered manifests in the settings.
        without_variable(expected["RayJob", "rec-ray"]["spec"]["rayClusterSpec"], "REC_RAY__TRAIN__NUM_WORKERS")
        group = expected["RayJob", "rec-ray"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        assert (group["minReplicas"], group["maxReplicas"]) == tuple(workers_that_train(objects(overlay)))
        group["replicas"] = group["minReplicas"] = 2  # train.num_workers, below which no cluster shrinks

    assert without_settings(found) == expected


def test_the_nightly_cronjob_is_that_of_production_but_for_the_secrets(project: Path) -> None:
    found = without_settings(render("cronjob", project, grow_to=4))
    expected = without_settings(objects("production"))

    assert set(found) == set(expected)
    for key in found:
        if key[0] != "RayCronJob":
            assert found[key] == expected[key] or key[0] == "ConfigMap", key
    template = found["RayCronJob", "rec-ray"]["spec"]
    assert template["suspend"] is True
    assert (
        template["jobTemplate"]["entrypoint"] == expected["RayCronJob", "rec-ray"]["spec"]["jobTemplate"]["entrypoint"]
    )


def test_two_nightly_runs_in_a_namespace_share_no_rights_and_no_settings(project: Path) -> None:
    one, other = (
        render("cronjob", project, f"candidates.k={k}", name=name, queue="nights") for name, k in (("a", 5), ("b", 6))
    )
    shared = {"ServiceAccount": {"rec-ray"}, "NetworkPolicy": {"rec-ray"}}

    for kind in {each["kind"] for each in one}:
        names = [{each["metadata"]["name"] for each in found if each["kind"] == kind} for found in (one, other)]
        assert names[0] & names[1] == shared.get(kind, set()), kind
    by_kind = {each["kind"]: each for each in one}
    pod = by_kind["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][-2:] == ["--queue", "nights"]
    assert pod["containers"][0]["command"][2:4] == ["--template", "a"]
    assert by_kind["Role"]["rules"][1]["resourceNames"] == ["a"]
    assert by_kind["RoleBinding"]["roleRef"]["name"] == by_kind["Role"]["metadata"]["name"] == "a-scheduler"
    assert by_kind["RoleBinding"]["subjects"][0]["name"] == pod["serviceAccountName"] == "a-scheduler"
    assert "queue-name" not in json.dumps(by_kind["RayCronJob"]), "the template is in no queue"


@pytest.mark.parametrize(
    ("overlay", "workers"), [("rayjob-autoscaling", [1, 4]), ("production", [1, 4]), ("rayjob", 2)]
)
def test_training_uses_the_nodes_that_autoscaling_adds(overlay: str, workers: Any) -> None:
    found = objects(overlay)
    (cluster,) = [cluster_of(each) for each in found if each["kind"] in ("RayJob", "RayCronJob")]
    (group,) = cluster["workerGroupSpecs"]

    assert workers_that_train(found) == workers
    bounds = workers if isinstance(workers, list) else [workers, workers]
    assert [group["minReplicas"], group["maxReplicas"]] == bounds


def test_a_cluster_that_may_grow_trains_on_what_it_grows_to(project: Path) -> None:
    found = render("raycluster", project, grow_to=5)
    (cluster,) = [each["spec"] for each in found if each["kind"] == "RayCluster"]

    assert workers_that_train(found) == [2, 5]
    assert cluster["workerGroupSpecs"][0]["maxReplicas"] == 5


def test_settings_become_pods_and_a_configmap(project: Path) -> None:
    changes = ["train.num_workers=3", "train.cpus_per_worker=6", "features.item.price.kind=numeric", "candidates.k=7"]
    found = {
        manifest["kind"]: manifest
        for manifest in render("rayjob", project, *changes, image="a/b:1", name="night", namespace="shop")
    }
    job = found["RayJob"]
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    images = {line for line in json.dumps(found).split('"') if line.startswith(("a/b", "quay.io"))}

    assert job["metadata"]["name"] == "night"
    assert {manifest["metadata"]["namespace"] for manifest in found.values()} == {"shop"}
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "7"
    assert images == {"a/b:1"}
    (project / "there").mkdir()
    (project / "there" / "rec_ray.yaml").write_text(found["ConfigMap"]["data"]["rec_ray.yaml"])
    there = load_settings(project / "there" / "rec_ray.yaml", environ={})
    here = load_settings(project / "rec_ray.yaml", changes, environ={})
    assert there.model_dump(exclude={"feast"}) == here.model_dump(exclude={"feast"})
    assert there.feast.repo == str(project / "there" / "feature_repo")


def test_candidates_on_gpus_have_nodes_with_gpus_and_training_stays_where_it_was(project: Path) -> None:
    job = next(each for each in render("rayjob", project, "candidates.use_gpu=true") if each["kind"] == "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head, worker = (
        group["template"]["spec"]["containers"][0]
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0])
    )
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert head["image"].endswith("-cu130") and worker["image"] == head["image"]
    assert "REC_RAY__TRAIN__USE_GPU" not in {entry["name"] for entry in head["env"]}


def test_a_training_that_grows_has_a_cluster_that_grows(project: Path) -> None:
    found = {each["kind"]: each for each in render("raycluster", project, "train.num_workers=[2, 5]")}
    spec = found["RayCluster"]["spec"]
    (group,) = spec["workerGroupSpecs"]

    assert spec["enableInTreeAutoscaling"] is True
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 5)
    assert yaml.safe_load(found["ConfigMap"]["data"]["rec_ray.yaml"])["train"]["num_workers"] == [2, 5]


def test_certificates_travel_along(project: Path) -> None:
    (project / "our.crt").write_text("a certificate")
    found = {each["kind"]: each for each in render("raycluster", project, "storage.ca_bundle=our.crt")}
    items = found["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]["volumes"][0]["configMap"]["items"]

    assert found["ConfigMap"]["data"]["ca_bundle.crt"] == "a certificate"
    assert {"key": "ca_bundle.crt", "path": "ca_bundle.crt"} in items
    assert yaml.safe_load(found["ConfigMap"]["data"]["rec_ray.yaml"])["storage"]["ca_bundle"] == "ca_bundle.crt"


def test_a_rayjob_without_a_name_has_a_new_one(project: Path) -> None:
    (job,) = [each for each in render("rayjob", project) if each["kind"] == "RayJob"]

    assert job["metadata"]["name"].startswith("rec-ray-2")
    assert len(job["metadata"]["name"]) <= 47


@pytest.mark.parametrize(
    ("kind", "changes", "wishes", "says"),
    [
        ("pod", [], {}, "known are 'rayjob'"),
        ("raycluster", [], {"queue": "q"}, "--queue"),
        ("rayjob", [], {"queue": "q", "grow_to": 4}, "--queue"),
        ("rayjob", [], {"name": "n" * 48}, "at most 47"),
        ("cronjob", [], {"name": "n" * 35}, "at most 34"),
        ("rayjob", [], {"name": "Night"}, "lower-case"),
        ("rayjob", [], {"schedule": "0 1 * * *"}, "--schedule"),
        ("rayjob", [], {"grow_to": 1}, "train.num_workers 2"),
        ("rayjob", ["train.num_workers=[1, 4]"], {"queue": "q"}, "--queue"),
        ("rayjob", ["train.num_workers=[1, 4]"], {"grow_to": 3}, "train.num_workers 4"),
        ("rayjob", ["storage.url=store"], {}, "storage.url"),
        ("rayjob", ["database.url=sqlite:///versions.db"], {}, "database.url"),
        ("rayjob", ["side_tables.url=sqlite:///shop.db"], {}, "side_tables.url"),
        ("rayjob", ["feast.repo=elsewhere"], {}, "feature_store.yaml"),
    ],
)
def test_what_a_cluster_cannot_use_is_refused(
    kind: str, changes: list[str], wishes: dict[str, Any], says: str, project: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        render(kind, project, *changes, **wishes)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("password: ${REC_RAY__DATABASE__PASSWORD}", "password: hunter2", "holds the secret password"),
        ("rec_ray:${REC_RAY__DATABASE__PASSWORD}@", "rec_ray:hunter2@", "holds the secret path"),
        ("type: postgres", "type: sqlite", "on this machine"),
        ("path: postgresql+psycopg://", "path: /data/", "on this machine"),
    ],
)
def test_a_feature_store_that_pods_cannot_use_or_all_may_read_is_refused(
    old: str, new: str, says: str, project: Path
) -> None:
    file = project / "feature_repo" / "feature_store.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))

    with pytest.raises(ConfigError, match=says) as refused:
        render("rayjob", project)
    assert "hunter2" not in str(refused.value)


def test_the_command_prints_manifests_and_nothing_else(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "rayjob", "-C", str(project), "--name", "night"]) == 0
    assert "RayJob" in {each["kind"] for each in yaml.safe_load_all(capsys.readouterr().out)}
    assert main(["render", "pod", "-C", str(project)]) == 2


@pytest.mark.usefixtures("processes")
def test_the_manifests_travel_with_the_package(tmp_path: Path, project: Path) -> None:
    """A wheel is made of the checkout, and its data files are all that the program reads."""
    source = tmp_path / "source"
    for name in ("rec_ray", "cluster"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    uv = str(Path(sys.executable).with_name("uv"))
    built = subprocess.run(
        [uv, "build", "--wheel", "--out-dir", str(tmp_path), str(source)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    venv = tmp_path / "venv"
    subprocess.run([uv, "venv", "--python", sys.executable, str(venv)], check=True, capture_output=True)
    subprocess.run(
        [uv, "pip", "install", "--no-deps", "--python", str(venv), str(wheel)], check=True, capture_output=True
    )
    (here,) = venv.glob("lib/*/site-packages")
    there = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (here / "dependencies.pth").write_text(str(there))
    code = (
        "import sys; sys.path = [p for p in sys.path if not p.endswith('editable')]\n"
        "import rec_ray; assert 'venv' in rec_ray.__file__, rec_ray.__file__\n"
        f"from rec_ray.cli.main import main; sys.exit(main(['render', 'cronjob', '-C', {str(project)!r}]))"
    )
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", code],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CronJob" in {each["kind"] for each in yaml.safe_load_all(done.stdout)}
