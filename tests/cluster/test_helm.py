"""The Helm chart renders overlays/production, each value changes its places, and unknown values are refused."""

import copy
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import CLUSTER, objects, the, validate

from rec_ray import __version__

CHART = CLUSTER / "helm" / "rec-ray"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())

By = dict[tuple[str, str], dict[str, Any]]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("helm", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "`make install` puts helm into .venv/bin"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


def by_name(manifests: list[dict[str, Any]]) -> By:
    return {(each["kind"], each["metadata"]["name"]): each for each in manifests}


@functools.cache
def rendered(*values: str, namespace: str = "rec-ray") -> str:
    settings = [word for value in values for word in ("--set", value)]
    done = helm("template", "rec-ray", str(CHART), "--namespace", namespace, *settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def template(*values: str, namespace: str = "rec-ray") -> By:
    return by_name([each for each in yaml.load_all(rendered(*values, namespace=namespace), yaml.CSafeLoader) if each])


def changes(before: Any, after: Any, path: str = "") -> set[str]:
    """Return the places in which two manifests differ."""
    if type(before) is not type(after) or not isinstance(before, dict | list):
        return set() if before == after else {path}
    if isinstance(before, list):
        if len(before) != len(after):
            return {path}
        return set().union(
            *(changes(*pair, f"{path}/{place}") for place, pair in enumerate(zip(before, after, strict=True)))
        )
    keys = before.keys() | after.keys()
    return set().union(*(changes(before.get(key), after.get(key), f"{path}/{key}") for key in keys))


def test_the_chart_is_sound_and_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    linted = helm("lint", "--strict", str(CHART))

    assert linted.returncode == 0, linted.stdout
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_its_manifests_are_those_of_the_overlay() -> None:
    """`make chart` writes the file anew."""
    kept = [each for each in yaml.safe_load_all((CHART / "files" / "production.yaml").read_text()) if each]

    assert by_name(kept) == by_name(objects("production"))
    assert template() == by_name(objects("production"))


def test_it_takes_the_namespace_of_the_release() -> None:
    found = template(namespace="shop")

    assert {each["metadata"]["namespace"] for each in found.values()} == {"shop"}
    (binding,) = [each for (kind, _), each in found.items() if kind == "RoleBinding"]
    assert binding["subjects"][0]["namespace"] == "shop"


CRON, RAY = "CronJob", "RayCronJob"
TEMPLATE = "/spec/jobTemplate/rayClusterSpec"
WORKER = f"{TEMPLATE}/workerGroupSpecs/0"
HEAD_POD, WORKER_POD = f"{TEMPLATE}/headGroupSpec/template/spec", f"{WORKER}/template/spec"
CASES: dict[str, tuple[str, ...]] = {
    "image=a/b:1": (
        f"{CRON}/spec/jobTemplate/spec/template/spec/containers/0/image",
        f"{RAY}{HEAD_POD}/containers/0/image",
        f"{RAY}{WORKER_POD}/containers/0/image",
        f"{RAY}/spec/jobTemplate/submitterPodTemplate/spec/containers/0/image",
    ),
    "schedule=0 3 * * *": (f"{CRON}/spec/schedule",),
    "timeZone=Europe/Berlin": (f"{CRON}/spec/timeZone",),
    "queue=nights": (f"{CRON}/spec/jobTemplate/spec/template/spec/containers/0/command",),
    "workers.cpu=6": tuple(f"{RAY}{WORKER_POD}/containers/0/resources/{kind}/cpu" for kind in ("requests", "limits")),
    "workers.memory=32Gi": tuple(
        f"{RAY}{WORKER_POD}/containers/0/resources/{kind}/memory" for kind in ("requests", "limits")
    ),
    "workers.ephemeralStorage=50Gi": tuple(
        f"{RAY}{WORKER_POD}/containers/0/resources/{kind}/ephemeral-storage" for kind in ("requests", "limits")
    ),
    "settings.candidates.k=7": ("ConfigMap/data/rec_ray.yaml",),
}


def test_each_value_changes_its_places_and_no_other() -> None:
    before, after = by_name(objects("production")), template(*CASES)
    found = {f"{kind}{path}" for kind, name in before for path in changes(before[kind, name], after[kind, name])}
    kinds = {kind: each for (kind, name), each in after.items() if name == "rec-ray"}

    assert found == set().union(*CASES.values())
    for value, places in CASES.items():
        expected = value.partition("=")[2]
        for place in places:
            kind, *keys = place.split("/")
            there: Any = kinds[kind]
            for key in keys:
                there = there[int(key)] if isinstance(there, list) else there[key]
            assert str(there) == expected or there[-1] == expected or "k: 7" in there, place


def test_settings_are_added_to_those_of_the_overlay() -> None:
    before = yaml.safe_load(the("production", "ConfigMap")["data"]["rec_ray.yaml"])
    text = template("settings.candidates.k=7", "settings.storage.url=s3://b/m")["ConfigMap", "rec-ray"]["data"]
    after = yaml.safe_load(text["rec_ray.yaml"])

    expected = copy.deepcopy(before) | {"candidates": {"k": 7}}
    expected["storage"]["url"] = "s3://b/m"
    assert after == expected


def test_the_secret_is_taken_by_its_name_everywhere() -> None:
    text = yaml.safe_dump_all(template("secretName=ours").values())

    assert "rec-ray-files" not in text and text.count("ours") == 4, "settings and secrets of both groups"


def test_workers_and_training_have_the_same_bounds() -> None:
    spec = template("workers.min=2", "workers.max=6")[RAY, "rec-ray"]["spec"]["jobTemplate"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    environment = {
        each["name"]: each.get("value") for each in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    }

    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (2, 2, 6)
    assert environment["REC_RAY__TRAIN__NUM_WORKERS"] == "[2, 6]"


def test_sizes_of_volumes_and_store_go_together() -> None:
    values = ("workers.objectStoreBytes=9000000000", "workers.sharedMemory=9Gi", "workers.scratch=30Gi")
    (group,) = template(*values)[RAY, "rec-ray"]["spec"]["jobTemplate"]["rayClusterSpec"]["workerGroupSpecs"]
    volumes = {each["name"]: each.get("emptyDir", {}).get("sizeLimit") for each in group["template"]["spec"]["volumes"]}

    assert group["rayStartParams"]["object-store-memory"] == "9000000000"
    assert (volumes["shared-memory"], volumes["scratch"]) == ("9Gi", "30Gi")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("imag=a/b:1",), "imag"),
        (("workers.minimum=1",), "minimum"),
        (("workers.min=0",), "min"),
        (("workers.min=5",), "workers.min 5 is greater than workers.max 4"),
    ],
)
def test_a_wrong_value_is_refused(values: tuple[str, ...], says: str) -> None:
    done = helm("template", "rec-ray", str(CHART), *(word for value in values for word in ("--set", value)))

    assert done.returncode != 0
    assert says in done.stderr


def test_every_value_has_a_schema_and_a_comment() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())["properties"]

    assert set(schema) - {"global"} == set(VALUES)
    assert set(schema["workers"]["properties"]) == set(VALUES["workers"])
    tested = {value.split("=")[0].split(".")[0] for value in CASES} | {"secretName", "workers"}
    assert tested == set(VALUES)


def test_every_version_accepts_it() -> None:
    for manifest in template(*CASES).values():
        validate(manifest)
