"""`rec-ray versions ...` as a person types it, on a folder and SQLite; publishing itself is tested elsewhere."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from stored_versions import write_version

from rec_ray.cli.main import main
from rec_ray.storage.object_store import open_storage
from rec_ray.versions.registry import VersionDatabase, VersionRow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Version 1 was live, 2 is, 3 was refused by the gate, 4 is only stored; 5 is being made."""
    settings = {"storage": {"url": "store"}, "database": {"url": "sqlite:///versions.db"}}
    (tmp_path / "rec_ray.yaml").write_text(yaml.safe_dump(settings))
    storage, database = open_storage(str(tmp_path / "store")), VersionDatabase(f"sqlite:///{tmp_path}/versions.db")
    for number in range(1, 6):
        database.reserve(f"run {number}")
        if number < 5:
            write_version(storage, str(number), ["u"], ["i"])
            database.mark(str(number), "refused" if number == 3 else "stored")
    metrics = {"model": {"recall@10": 0.25}, "popularity": {"recall@10": 0.125}}
    for version in ("1", "2"):
        database.publish(
            VersionRow(version, f"run {version}", metrics=metrics, data_to=datetime(2024, 6, 1, tzinfo=UTC))
        )
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_says_how_far_each_came(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("versions",), ("versions", "list")):
        found = said(capsys, *command, "-C", project)["versions"]
        states = [("2", "live"), ("1", "published"), ("4", "stored"), ("3", "refused")]
        assert [(each["version"], each["state"]) for each in found] == states
    assert main(["versions", "-C", str(project)]) == 0
    assert "refused" in capsys.readouterr().out


def test_show_says_all_that_is_known(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "versions", "show", "2", "-C", project)
    assert (found["state"], found["parent"], found["run_id"], found["files"]) == ("live", "1", "run 2", "complete")
    assert found["data_to"] == "2024-06-01T00:00:00+00:00" and found["metrics"]["model"] == {"recall@10": 0.25}
    assert main(["versions", "show", "2", "-C", str(project)]) == 0
    text = capsys.readouterr().out
    assert "0.2500" in text and "popularity" in text
    (project / "store/two-tower/1/metadata.json").unlink()
    assert "metadata.json" in said(capsys, "versions", "show", "1", "-C", project)["files"]
    assert said(capsys, "versions", "show", "5", "-C", project)["state"] == "reserved"
    assert main(["versions", "show", "9", "-C", str(project)]) == 4
    assert "there is no version '9'" in capsys.readouterr().err


def test_prune_removes_files_and_keeps_records(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "versions", "prune", "--keep", "1", "-C", project) == {
        "removed": ["3"],
        "kept": {"4": "among the newest", "2": "live", "1": "parent of the live one"},
        "replaced_parts": 0,
    }
    assert said(capsys, "versions", "show", "3", "-C", project)["state"] == "pruned"
    assert main(["versions", "prune", "--keep", "0", "-C", str(project)]) == 2


def test_options_stand_behind_the_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["versions", "-C", str(project), "list"]) == 2
    assert "rec-ray versions list -C" in capsys.readouterr().err


def test_light_commands_load_neither_feast_nor_torch_nor_ray(project: Path) -> None:
    light = [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["versions", "-C", "."],
        ["versions", "show", "2", "-C", "."],
    ]
    code = (
        "import sys; from rec_ray.cli.main import main;"
        f"codes = [main(words) for words in {light}];"
        "print(codes, sorted({'feast', 'torch', 'ray', 'matplotlib', 'pandas', 'numba'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == f"{[0] * len(light)} []"
