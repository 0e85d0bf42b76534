"""The Kubeflow pipeline compiles to what a cluster needs: three components in a row, with secrets by name only."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import ROOT

from rec_ray import __version__


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline and what Kubernetes is asked for, as the documented command writes them."""
    file = tmp_path_factory.mktemp("kubeflow") / "train_workflow.yaml"
    command = [sys.executable, str(ROOT / "cluster" / "kubeflow" / "train_workflow.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pipeline, platform = yaml.safe_load_all(file.read_text())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_each_step_is_a_component_and_waits_for_the_one_before(compiled: Any) -> None:
    root = compiled[0]["root"]
    after = {name: set(task.get("dependentTasks", [])) for name, task in root["dag"]["tasks"].items()}

    assert after == {"train": set(), "candidates": {"train"}, "publish": {"candidates"}}
    assert set(root["inputDefinitions"]["parameters"]) == {"ray_address", "config", "settings", "jobs"}
    assert set(root["outputDefinitions"]["parameters"]) == {"version"}
    assert set(root["outputDefinitions"]["artifacts"]) == {"metrics"}
    for task in root["dag"]["tasks"].values():
        assert not task["cachingOptions"], "never taken from a cache"
        assert task["retryPolicy"]["maxRetryCount"] == 1


def test_a_component_runs_in_the_image_and_has_the_token_from_its_secret(compiled: Any) -> None:
    pipeline, platform = compiled
    executors = pipeline["deploymentSpec"]["executors"]

    assert set(executors) == set(platform) == {"exec-train", "exec-candidates", "exec-publish"}
    for name, executor in executors.items():
        container = executor["container"]
        assert container["image"] == f"quay.io/rh-ai-quickstart/recommendation-training:{__version__}"
        assert container["env"] == [{"name": "RAY_AUTH_MODE", "value": "token"}]
        assert "pip install" not in str(container["command"]), "the image has all it needs"
        (secret,) = platform[name]["secretAsEnv"]
        assert secret["secretName"] == "rec-ray", "KubeRay's Secret is called like the RayCluster"
        assert secret["keyToEnv"] == [{"envVar": "RAY_AUTH_TOKEN", "secretKey": "auth_token"}]


def test_its_defaults_are_those_of_the_manifests(compiled: Any) -> None:
    parameters = compiled[0]["root"]["inputDefinitions"]["parameters"]
    (mount,) = [
        mount["mountPath"]
        for mount in yaml.safe_load((ROOT / "cluster/base/raycluster.yaml").read_text())["spec"]["headGroupSpec"][
            "template"
        ]["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "settings"
    ]

    assert parameters["ray_address"]["defaultValue"] == "http://rec-ray-head-svc:8265"
    assert Path(parameters["config"]["defaultValue"]).parent == Path(mount)
    assert (ROOT / Path(parameters["jobs"]["defaultValue"]).name / "submit.py").is_file()
