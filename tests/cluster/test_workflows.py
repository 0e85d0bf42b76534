"""The GitHub workflows are valid, pinned and of least rights; they build, scan, sign and publish the images."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rec_ray.cli.kubernetes_manifests import GPU_IMAGE

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))


def load(name: str) -> dict[Any, Any]:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    assert isinstance(workflow, dict)
    return workflow


def triggers(workflow: dict[Any, Any]) -> dict[str, Any]:
    on = workflow[True]  # YAML 1.1 reads the key `on` as true
    assert isinstance(on, dict)
    return on


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def test_workflows_follow_the_schema_of_github() -> None:
    command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS)]
    checked = subprocess.run(command, capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    """A workflow with an error is the counter-proof."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("github.ref", "github.reff"))

    checked = [
        subprocess.run(
            [str(BIN / "actionlint"), f"-shellcheck={BIN / 'shellcheck'}", *map(str, files)],
            capture_output=True,
            text=True,
        )
        for files in (WORKFLOWS, [wrong])
    ]

    assert checked[0].returncode == 0, checked[0].stdout
    assert checked[1].returncode == 1 and "reff" in checked[1].stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_scripts_are_sound_and_take_no_expression_as_shell_code(path: Path) -> None:
    scripts = [step["run"] for step in steps(load(path.name)) if "run" in step]

    for script in scripts:
        assert "${{" not in script, "hand it over in `env`: an expression in `run` is pasted into the script"
        checked = subprocess.run(
            [str(BIN / "shellcheck"), "--shell=bash", "-"], input=script, capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_secrets_are_those_of_the_registry(path: Path) -> None:
    """actionlint checks every other name in an expression."""
    found = set(re.findall(r"secrets\.(\w+)", path.read_text()))

    assert found == ({"QUAY_USERNAME", "QUAY_PASSWORD"} if path.name == "build-and-push.yaml" else set())
    for step in steps(load(path.name)):
        if "QUAY_PASSWORD" in str(step):
            assert "--password-stdin" in step["run"], "a password among the arguments shows in the process list"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_least_rights_an_end_and_pinned_actions(path: Path) -> None:
    workflow = load(path.name)

    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        if "steps" in job:
            assert job["timeout-minutes"] <= 60
        more = {"contents": "read", "id-token": "write"} if name == "publish" else None
        assert job.get("permissions") == more, name
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), "by commit: a tag can be moved"
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}
    for line in path.read_text().splitlines():
        if "@" in line and "uses:" in line:
            assert re.search(r"@[0-9a-f]{40} # v\d", line), "a person reads the version behind the commit"


def script_of(job: dict[str, Any]) -> str:
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


def test_images_for_both_machines_with_and_without_gpus_are_built_after_the_tests() -> None:
    workflow = load("build-and-push.yaml")
    jobs = workflow["jobs"]
    build = script_of(jobs["build"])

    assert workflow["env"]["IMAGE"] == "quay.io/rh-ai-quickstart/recommendation-training"
    assert jobs["test"]["uses"] == "./.github/workflows/tests.yaml"
    assert jobs["build"]["needs"] == ["test", "base"] and jobs["publish"]["needs"] == "build"
    assert "workflow_call" in triggers(load("tests.yaml"))
    assert jobs["build"]["strategy"]["matrix"] == {
        "runner": ["ubuntu-24.04", "ubuntu-24.04-arm"],
        "torch": ["cpu", "cu130"],
    }
    suffixes = jobs["publish"]["strategy"]["matrix"]["suffix"]
    assert suffixes == ["", GPU_IMAGE], "the tag that `render` and overlays/gpu name"
    assert 'BASE_IMAGE="$BASE@$DIGEST"' in build and "--file Containerfile ." in build
    assert "--read-only --tmpfs /tmp --user 1000650000:0" in build
    names = [step["name"] for step in jobs["build"]["steps"] if "name" in step]
    assert names.index("Scan it for known vulnerabilities") < names.index("Push")
    (scan,) = [step for step in jobs["build"]["steps"] if "scan-action" in step.get("uses", "")]
    assert scan["with"]["sbom"] == "packages.spdx.json" and scan["with"]["severity-cutoff"] == "critical"


def test_a_version_is_pushed_by_its_tag_alone_and_only_once() -> None:
    workflow = load("build-and-push.yaml")
    *before, release = workflow["jobs"]["publish"]["steps"]

    assert triggers(workflow)["push"] == {"branches": ["main", "master"], "tags": ["v*"]}
    assert release["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert '"$GITHUB_REF_NAME" != "v$version"' in release["run"]
    assert release["run"].index("skopeo inspect") < release["run"].index("skopeo copy")
    others = script_of({"steps": before}) + script_of(workflow["jobs"]["build"])
    assert "latest" not in others and "version" not in others
    assert 'cosign sign --yes --recursive "$IMAGE@$(cat digest.txt)"' in others, "a digest, not a tag, is signed"


def test_the_tests_run_as_in_continuous_integration_on_every_supported_python() -> None:
    workflow = load("tests.yaml")

    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in workflow["jobs"].items()}
    assert runs == {"test": ["make test"], "smoke": ["make test-fast", "make demo"]}
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    others = {entry["python"] for entry in workflow["jobs"]["smoke"]["strategy"]["matrix"]["include"]}
    assert others == {"3.11", "3.13", "3.14"}
