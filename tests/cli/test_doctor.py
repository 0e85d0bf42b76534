"""The doctor: every part of the outside world is really used, nothing is left behind, and each fault has its line."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from rec_ray.cli.doctor import CANARY, Check, examine, exit_code_of
from rec_ray.cli.main import main
from rec_ray.config import Settings
from rec_ray.config.loading import load_settings
from rec_ray.retrieval.search.byte_products import fastest_kernel

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]
NAMES = [
    "object store",
    "version database",
    "side tables",
    "feature registry",
    "offline store",
    "push sources",
    "online store",
    "online features",
    "user encoder",
    "Ray",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path], tiny_tables: Any) -> Path:
    return make_project(tmp_path_factory.mktemp("doctor"), **tiny_tables)


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "project"))


def settings_of(project: Path, *changes: str) -> Settings:
    return load_settings(project / "rec_ray.yaml", list(changes), environ={})


def faults(project: Path, *changes: str) -> dict[str, Check]:
    checks = examine(settings_of(project, *changes))
    assert [check.name for check in checks] == NAMES
    assert all("\n" not in check.said and check.said for check in checks)
    return {check.name: check for check in checks if not check.ok}


def test_a_whole_project_has_no_fault_and_nothing_is_left_for_readers(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "-C", str(project), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in answer["checks"]] == NAMES
    assert all(check["ok"] for check in answer["checks"]) and answer["exit_code"] == 0
    assert "live is no version yet" in answer["checks"][1]["said"]
    assert f"; exact search by {fastest_kernel()}" in answer["checks"][-1]["said"]
    assert not [path for path in (project / "store").rglob("*") if path.is_file()]
    # The canary's list is empty: whoever asks for it is recommended nothing.
    from rec_ray.feature_store.push_targets import find_push_target, read_online
    from rec_ray.runs.context import open_feature_store
    from rec_ray.schema import ITEM_IDS, SCORES, USER_ID

    store = open_feature_store(settings_of(project))
    target = find_push_target(store, "user_items_push_source", USER_ID, [ITEM_IDS, SCORES])
    assert read_online(store, target, [CANARY])[target.fields[ITEM_IDS]] == [[]]
    # And it works again, although the store has a row of the canary by now.
    assert main(["doctor", "-C", str(project)]) == 0
    assert capsys.readouterr().out.count("\nok    ") == len(NAMES) - 1


def test_a_store_that_cannot_be_written_does_not_hide_the_rest(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "store").write_text("a file")
    assert main(["doctor", "-C", str(project)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAULT object store: cannot ") and "set storage.url to a folder" in lines[0]
    assert len([line for line in lines if line.startswith("ok ")]) == len(NAMES) - 1


def test_a_wrong_name_is_a_matter_of_settings(project: Path) -> None:
    found = faults(project, "publish.user_push_source=nobody", "feast.item_service=things")
    assert {"feature registry", "offline store", "push sources", "online store"} <= set(found)
    assert "'things'" in found["feature registry"].said and "'nobody'" in found["push sources"].said
    assert exit_code_of(list(found.values())) == 2
    found = faults(project, "publish.user_push_source=nobody")
    assert "'nobody'" in found["push sources"].said and found["push sources"].exit_code == 2


def test_data_that_are_gone_are_found(tmp_path: Path, make_project: Callable[..., Path], tiny_tables: Any) -> None:
    """Of a project of its own: the registry of a copy names the files of the first one."""
    project = make_project(tmp_path, **tiny_tables)
    (project / "feature_repo" / "data" / "interactions.parquet").unlink()
    found = faults(project)
    assert set(found) == {"offline store"}
    assert "there is no file" in found["offline store"].said and exit_code_of(list(found.values())) == 3


def test_servers_that_are_away_are_named(project: Path) -> None:
    file = project / "feature_repo" / "feature_store.yaml"
    away = {"type": "redis", "connection_string": "127.0.0.1:1"}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "online_store": away}))
    found = faults(
        project,
        "storage.url=s3://bucket",
        "storage.endpoint=http://127.0.0.1:1",
        "database.url=postgresql://me@127.0.0.1:1/x",
        "side_tables.url=postgresql://me@127.0.0.1:1/x",
    )
    assert set(found) == {"object store", "version database", "side tables", "online store", "online features"}
    assert "nothing answers at storage.endpoint http://127.0.0.1:1" in found["object store"].said
    assert "is the online store of feature_store.yaml up" in found["online store"].said
    assert exit_code_of(list(found.values())) == 3


def test_a_machine_that_is_too_small_is_told_before_the_run(project: Path) -> None:
    found = faults(project, "ray.num_cpus=10000")
    assert set(found) == {"Ray"}
    assert "lower feast.join_rows or ray.num_cpus" in found["Ray"].said and found["Ray"].exit_code == 2


def test_a_gpu_that_is_not_there_is_told_before_the_run(project: Path) -> None:
    found = faults(project, "train.use_gpu=true")
    assert set(found) == {"Ray"} and found["Ray"].exit_code == 2
    assert "train.use_gpu: this machine has no GPU that Ray sees" in found["Ray"].said


def test_suspicious_events_are_named_and_are_no_fault(project: Path) -> None:
    settings = settings_of(project, "features.interaction.negative_types=[skip]")
    (offline,) = [check for check in examine(settings) if check.name == "offline store"]
    assert offline.ok
    assert "4,000 events looked at; events of the type 'negative_view' (200) are learned as positives" in offline.said
    assert "features.interaction.negative_types names 'skip', which no event has" in offline.said


def test_a_table_exported_after_all_events_is_found_before_the_run(
    tmp_path: Path, make_project: Callable[..., Path], tiny_tables: Any
) -> None:
    """Training would see none of its values, and publication all of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    project = make_project(tmp_path, **tiny_tables)
    path = project / "feature_repo" / "data" / "users.parquet"
    table = pq.read_table(path)
    times = pa.array([datetime(2024, 9, 1, tzinfo=UTC)] * table.num_rows, pa.timestamp("us", "UTC"))
    pq.write_table(table.set_column(table.schema.get_field_index("event_timestamp"), "event_timestamp", times), path)
    found = faults(project)
    assert set(found) == {"offline store"} and found["offline store"].exit_code == 2
    for part in ("every declared user feature", "view 'users'", "features.user_history: as_of_now"):
        assert part in found["offline store"].said
