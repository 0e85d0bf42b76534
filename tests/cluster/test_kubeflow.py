"""The Kubeflow pipeline compiles: three components in a row, an exit task that stops their jobs, secrets by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import ROOT

from rec_ray import __version__


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, processes: None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline and its settings for Kubernetes, as the documented command writes them."""
    file = tmp_path_factory.mktemp("kubeflow") / "train_workflow.yaml"
    command = [sys.executable, str(ROOT / "cluster" / "kubeflow" / "train_workflow.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pipeline, platform = yaml.safe_load_all(file.read_text())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_each_step_is_a_component_and_waits_for_the_one_before(compiled: Any) -> None:
    steps = compiled[0]["components"]["comp-rec-ray-steps"]
    after = {name: set(task.get("dependentTasks", [])) for name, task in steps["dag"]["tasks"].items()}

    assert after == {"train": set(), "candidates": {"train"}, "publish": {"candidates"}}
    parameters = compiled[0]["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"ray_address", "config", "settings", "jobs"}
    assert set(steps["outputDefinitions"]["parameters"]) == {"version"}
    assert set(steps["outputDefinitions"]["artifacts"]) == {"metrics"}
    for task in steps["dag"]["tasks"].values():
        assert not task["cachingOptions"], "never taken from a cache"
        assert task["retryPolicy"]["maxRetryCount"] == 1


def test_a_run_that_ends_in_any_way_stops_its_jobs(compiled: Any) -> None:
    tasks = compiled[0]["root"]["dag"]["tasks"]
    (run,) = [name for name in tasks if name.startswith("exit-handler")]
    inside = compiled[0]["components"][tasks[run]["componentRef"]["name"]]["dag"]["tasks"]

    assert tasks["stop"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert tasks["stop"]["dependentTasks"] == [run]
    assert set(inside) == {"rec-ray-steps"} and not inside["rec-ray-steps"]["cachingOptions"]
    ids = [task["inputs"]["parameters"]["run_id"] for task in (tasks["stop"], inside["rec-ray-steps"])]
    assert ids[0] == ids[1], "it stops the jobs of this run"


def test_a_component_runs_in_the_image_and_has_the_token_from_its_secret(compiled: Any) -> None:
    pipeline, platform = compiled
    executors = pipeline["deploymentSpec"]["executors"]

    assert set(executors) == set(platform) == {"exec-train", "exec-candidates", "exec-publish", "exec-stop"}
    for name, executor in executors.items():
        container = executor["container"]
        assert container["image"] == f"quay.io/rh-ai-quickstart/recommendation-training:{__version__}"
        assert container["env"] == [{"name": "RAY_AUTH_MODE", "value": "token"}]
        assert "pip install" not in str(container["command"]), "the image has all it needs"
        (secret,) = platform[name]["secretAsEnv"]
        assert secret["secretName"] == "rec-ray", "KubeRay's Secret has the name of the RayCluster"
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


@pytest.mark.usefixtures("processes")
def test_kfp_runs_it_and_hands_the_version_from_step_to_step(tmp_path: Path) -> None:
    """With kfp's local runner, which knows no exit handler, and a stand-in for the submitter that records its calls."""
    (tmp_path / "submit.py").write_text(
        "import json, pathlib\n"
        "def ask(address, command, run_id):\n"
        "    with (pathlib.Path(__file__).parent / 'asked.jsonl').open('a') as file:\n"
        "        print(json.dumps([address, command, run_id]), file=file)\n"
        "    model = {'ndcg@10': 0.5}\n"
        "    return {'version': '7', 'evaluation': {'metrics': {'model': model}}, 'counts': {'users': 3}}\n"
    )
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "cluster" / "kubeflow")!r})
from kfp import local
from train_workflow import steps
local.init(local.SubprocessRunner(use_venv=False), pipeline_root={str(tmp_path / "outputs")!r})
task = steps(
    ray_address="http://head", config="c.yaml", settings=["a.b=1"], jobs={str(tmp_path)!r}, run_id="kfp-1"
)
print("RESULT", task.outputs["version"], task.outputs["metrics"].metadata["ndcg@10"])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)

    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert "RESULT 7 0.5" in ran.stdout.splitlines()
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    rest = ["--config", "c.yaml", "--json", "--set", "a.b=1"]
    commands = [["rec-ray", "train"], ["rec-ray", "candidates", "7"], ["rec-ray", "publish", "7"]]
    assert [command for _, command, _ in asked] == [[*command, *rest] for command in commands]
    names = [run_id for _, _, run_id in asked]
    assert names == ["kfp-1-train", "kfp-1-candidates", "kfp-1-publish"]
