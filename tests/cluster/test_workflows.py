"""The GitHub workflows are valid and do what the project promises of them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_workflows_follow_the_schema_of_github() -> None:
    command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS)]
    checked = subprocess.run(command, capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    """Whether it finds something where there is something is asked too."""
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
def test_expressions_name_things_that_exist(path: Path) -> None:
    text = path.read_text()
    matrix = {
        f"matrix.{key}" for job in load(path.name)["jobs"].values() for key in job.get("strategy", {}).get("matrix", {})
    }
    known = {"github.ref", "secrets.QUAY_USERNAME", "secrets.QUAY_PASSWORD", *matrix}

    assert set(re.findall(r"\$\{\{\s*(.*?)\s*\}\}", text)) <= known


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_least_rights_and_an_end(path: Path) -> None:
    workflow = load(path.name)

    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())
    assert all("@" in step["uses"] for step in steps(workflow) if "uses" in step)


def test_the_image_is_built_with_podman_and_pushed_to_quay() -> None:
    workflow = load("build-and-push.yaml")
    image = workflow["jobs"]["image"]
    scripts = "\n".join(step["run"] for step in image["steps"] if "run" in step)
    secrets = [step["env"] for step in image["steps"] if "env" in step]

    assert triggers(workflow) == {"push": {"branches": ["main", "master"]}, "workflow_dispatch": None}
    assert image["env"] == {"IMAGE": "quay.io/rh-ai-quickstart/recommendation-training"}
    assert "podman build" in scripts and "--file Containerfile ." in scripts
    assert "git rev-parse --short HEAD" in scripts
    for tag in ("$TAG", "$VERSION", "latest"):
        assert f'--tag "$IMAGE:{tag}"' in scripts and f'podman push "$IMAGE:{tag}"' in scripts
    assert secrets == [
        {"QUAY_USERNAME": "${{ secrets.QUAY_USERNAME }}", "QUAY_PASSWORD": "${{ secrets.QUAY_PASSWORD }}"}
    ]
    assert "--password-stdin" in scripts, "a password among the arguments shows in the process list"


def test_the_tests_run_as_in_continuous_integration_on_every_supported_python() -> None:
    workflow = load("tests.yaml")

    assert [step["run"] for step in steps(workflow) if "run" in step] == ["make test"]
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
