"""What is told of versions that are live, published before, only stored, only reserved, damaged, or not there."""

from pathlib import Path

import pytest
from stored_versions import write_version

from rec_ray.cli.version_listing import list_versions, show_version
from rec_ray.config import Settings
from rec_ray.config.loading import load_settings
from rec_ray.errors import DataError
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.versions.registry import VersionRow


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A project with version 1 published, 2 live, 3 stored, 4 reserved."""
    file = tmp_path / "rec_ray.yaml"
    file.write_text(f"storage: {{url: {tmp_path}/store}}\ndatabase: {{url: 'sqlite:///{tmp_path}/versions.db'}}\n")
    settings = load_settings(file, environ={})
    storage, database = open_object_store(settings), open_version_database(settings)
    database.migrate()
    for number in range(1, 5):
        version = database.reserve(f"run-{number}")
        assert version == str(number)
        if number < 4:
            write_version(storage, version, ["a"], ["i0", "i1"])
        if number < 3:
            database.publish(VersionRow(version=version, run_id=f"run-{number}"))
    return settings


def test_all_versions_the_live_one_first(settings: Settings) -> None:
    told = [(row["version"], row["state"], row["run_id"]) for row in list_versions(settings)]

    assert told[:3] == [("2", "live", "run-2"), ("1", "published", "run-1"), ("3", "reserved", "run-3")]


def test_one_version(settings: Settings) -> None:
    live = show_version(settings, "2")

    assert (live["state"], live["files"], live["run_id"]) == ("live", "complete", "run-2")
    assert len(live["published"]) == 1
    assert show_version(settings, "4")["files"] != "complete", "no model is stored under it"
    with pytest.raises(DataError, match="there is no version '5'"):
        show_version(settings, "5")


def test_damaged_files_are_said(settings: Settings) -> None:
    open_object_store(settings).write_bytes("two-tower/1/metadata.json", b"{}")

    assert "metadata.json" in show_version(settings, "1")["files"]
