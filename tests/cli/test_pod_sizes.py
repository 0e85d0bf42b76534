"""Sizes of worker pods follow the plan of the data, and keep the rules of the manifests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import BASE

from rec_ray.cli.kubernetes_manifests import RenderOptions, render_manifests
from rec_ray.cli.main import main
from rec_ray.cli.plan import Plan, PlannedStep
from rec_ray.cli.pod_sizes import GIB, PodSizes, size_workers
from rec_ray.config import Settings
from rec_ray.config.loading import load_settings


def plan_of(*memory_gib: float) -> Plan:
    steps = [PlannedStep(f"step {place}", "", 1.0, int(size * GIB)) for place, size in enumerate(memory_gib)]
    return Plan("1", 8, {}, steps, 0, {}, {})


def settings_of(num_workers: Any = 2, cpus_per_worker: int = 1) -> Settings:
    return Settings.model_validate({"train": {"num_workers": num_workers, "cpus_per_worker": cpus_per_worker}})


def test_the_largest_step_is_shared_by_the_workers() -> None:
    sizes = size_workers(plan_of(4, 40, 8), settings_of(2))

    # 20 GiB each, a quarter more, and 0.3 of that for the object store.
    assert (sizes.workers, sizes.memory, sizes.object_store) == (2, 25 * GIB, int(7.5 * GIB))
    assert sizes.shared_memory == 8 * GIB  # 7.5 / 0.94 = 7.98
    assert (sizes.scratch, sizes.ephemeral_storage) == (24 * GIB, 28 * GIB)
    assert sizes.cpus == 4


@pytest.mark.parametrize(("workers", "memory"), [(1, 50), (4, 13), ([2, 8], 25), (40, 4)])
def test_more_workers_need_less_each_and_a_range_counts_its_fewest(workers: Any, memory: int) -> None:
    assert size_workers(plan_of(40), settings_of(workers)).memory == memory * GIB


def test_a_pod_has_a_cpu_more_than_it_trains_with() -> None:
    assert size_workers(plan_of(1), settings_of(1, 6)).cpus == 7


def test_the_manifests_take_the_sizes(tmp_path: Path) -> None:
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "rec_ray.yaml").write_text((BASE / "rec_ray.yaml").read_text())
    (tmp_path / "feature_repo" / "feature_store.yaml").write_text((BASE / "feature_store.yaml").read_text())
    sizes = PodSizes(2, 7, 9 * GIB, 2_500_000_000, 3 * GIB, 11 * GIB, 15 * GIB)
    text = render_manifests("rayjob", load_settings(tmp_path / "rec_ray.yaml", environ={}), RenderOptions(sizes=sizes))
    (job,) = [each for each in yaml.safe_load_all(text) if each["kind"] == "RayJob"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    volumes = {each["name"]: each.get("emptyDir") for each in group["template"]["spec"]["volumes"]}

    assert resources["requests"] == {"cpu": "7", "memory": "9Gi", "ephemeral-storage": "15Gi"} == resources["limits"]
    assert group["rayStartParams"]["object-store-memory"] == "2500000000"
    assert volumes["shared-memory"] == {"medium": "Memory", "sizeLimit": "3Gi"}
    assert volumes["scratch"] == {"sizeLimit": "11Gi"}


def test_the_command_prints_the_sizes_of_a_small_shop(
    make_project: Callable[..., Path], tiny_tables: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path, **tiny_tables)
    assert main(["plan", "--kubernetes", "-C", str(project), "--json", "--set", "train.num_workers=2"]) == 0
    sizes = json.loads(capsys.readouterr().out)

    assert (sizes["worker pods"], sizes["cpu"]) == ("2", "4")
    assert 4 <= int(sizes["memory"].removesuffix("Gi")) <= 8, "eight processes and next to no data"
    assert main(["plan", "--kubernetes", "-C", str(project)]) == 0
    assert "ephemeral-storage" in capsys.readouterr().out
