"""The plan of a run: rows as the files have them, estimates that grow with what there is, and nothing touched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rec_ray.cli.main import main
from rec_ray.cli.plan import plan_run
from rec_ray.config.loading import load_settings


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path], tiny_tables: Any) -> Path:
    return make_project(tmp_path_factory.mktemp("plan"), **tiny_tables)


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_plan_has_the_rows_of_the_files_and_touches_nothing(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("a plan starts no Ray"))
    before = everything(project)
    assert main(["plan", "-C", str(project), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rows"] == {"interactions": 4000, "users": 200, "items": 60}
    assert plan["version"] == "1"
    assert [step["name"] for step in plan["steps"]][-2:] == ["candidates", "update_features"]
    assert plan["seconds"] == pytest.approx(sum(step["seconds"] for step in plan["steps"]))
    assert plan["memory_bytes"] == max(step["memory_bytes"] for step in plan["steps"])
    assert plan["publishes"]["user_items_push_source"].startswith("user_items: top_k_item_ids")
    assert main(["plan", "-C", str(project)]) == 0
    shown = capsys.readouterr().out
    assert "4,000" in shown and "push 460 rows" in shown
    assert everything(project) == before


def test_estimates_grow_with_the_work(project: Path) -> None:
    def seconds(*changes: str) -> dict[str, float]:
        plan = plan_run(load_settings(project / "rec_ray.yaml", list(changes), environ={}))
        return {step.name: step.seconds for step in plan.steps}

    few, many = seconds("train.epochs=1"), seconds("train.epochs=1000")
    assert many["train"] > 2 * few["train"] and many["evaluate"] == few["evaluate"]
    assert seconds("ray.num_cpus=1")["load_features"] > seconds("ray.num_cpus=4")["load_features"]


def test_a_wrong_setting_is_found_by_the_plan(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-C", str(project), "--set", "publish.item_push_source=nobody"]) == 2
    assert "no feature view of project" in capsys.readouterr().err
