"""Computed candidates replace those of a version in one write; their sum is in the database before."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from stored_versions import write_version

from rec_ray.candidate_store.manifest import MANIFEST, PENDING, Part, read_manifest, read_with_sum, write_manifest
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.errors import DataError, LockedError
from rec_ray.publishing.commit_candidates import commit_candidates, reopen_candidates, require_recorded
from rec_ray.publishing.previous_ids import pushed_candidates
from rec_ray.publishing.prune import prune_versions
from rec_ray.storage.object_store import Storage, open_storage
from rec_ray.versions.registry import VersionDatabase, VersionRow

GENERATION = "20240501T000000.000000Z"
LATER = "20240502T000000.000000Z"
PREFIX = "two-tower/1/candidates"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


@pytest.fixture
def database(tmp_path: Path) -> VersionDatabase:
    return VersionDatabase(f"sqlite:///{tmp_path}/versions.db")


def write_pending(storage: Storage, users: list[str], generation: str = GENERATION) -> StoredCandidates:
    """Write candidates as `generate_candidates` does: new parts beside the old ones, and a pending manifest."""
    other = open_storage(storage.path("other", generation))
    drawn = write_version(other, "1", users, ["i1", "i2"], k=2)
    parts = {}
    for folder, each in drawn.manifest.parts.items():
        for part in each:
            data = other.read_bytes(f"{PREFIX}/{folder}/{part.name}")
            storage.write_bytes(f"{PREFIX}/{folder}/{generation}/{part.name}", data)
            sha256 = hashlib.sha256(data).hexdigest()
            parts[folder] = (*parts.get(folder, ()), Part(f"{generation}/{part.name}", part.rows, len(data), sha256))
    manifest = dataclasses.replace(drawn.manifest, parts=parts, generation=generation, format_version=2)
    write_manifest(storage, PREFIX, manifest, PENDING)
    return StoredCandidates(PREFIX, manifest)


def commit(storage: Storage, database: VersionDatabase) -> None:
    commit_candidates(storage, database, "1", PREFIX, database.publishing_lock("me", 60))


def test_the_live_version_is_complete_at_every_moment(storage: Storage, database: VersionDatabase) -> None:
    """Also after a kill at any point before the last write: the old manifest and all its parts are there."""
    write_version(storage, "1", ["a", "b"], ["i1", "i2", "i3"])
    database.publish(VersionRow("1"))
    before = {key: storage.read_bytes(key) for key in storage.list(PREFIX)}
    new = write_pending(storage, ["b", "c"])
    assert {key: storage.read_bytes(key) for key in before} == before, "computed, not yet committed"
    with database.publishing_lock("another publisher", 60), pytest.raises(LockedError, match="another publisher"):
        commit(storage, database)
    assert read_manifest(storage, PREFIX).users == 2 and storage.exists(f"{PREFIX}/{PENDING}")
    assert {key: storage.read_bytes(key) for key in before} == before

    commit(storage, database)

    assert read_manifest(storage, PREFIX) == new.manifest
    parts = {key: data for key, data in before.items() if not key.endswith(MANIFEST)}
    assert {key: storage.read_bytes(key) for key in parts} == parts, "readers of the old manifest keep its parts"
    assert not storage.exists(f"{PREFIX}/{PENDING}")
    assert database.lock_holder() is None
    noted = pushed_candidates(storage, "1")
    assert [each.rows("user_embeddings") for each in noted] == [2, 2], "the new ones, and the ids of the old"
    commit(storage, database)
    assert read_manifest(storage, PREFIX) == new.manifest, "a second time nothing is left to do"


def test_committed_candidates_are_opened_again_to_add_to_them(storage: Storage, database: VersionDatabase) -> None:
    """An attempt that died between the commit and its ledger is done again: its manifest must be a recorded one."""
    write_pending(storage, ["a"])
    commit(storage, database)
    committed = read_manifest(storage, PREFIX)
    reopen_candidates(storage, PREFIX)
    write_manifest(storage, PREFIX, dataclasses.replace(committed, k=7), PENDING)
    reopen_candidates(storage, PREFIX)
    assert read_manifest(storage, PREFIX) == committed
    commit(storage, database)
    assert read_manifest(storage, PREFIX).k == 7
    require_recorded(storage, database, "1", PREFIX, read_with_sum(storage, PREFIX)[1])


def test_a_version_without_readers_needs_no_lock(storage: Storage, database: VersionDatabase) -> None:
    new = write_pending(storage, ["a"])
    with database.publishing_lock("another publisher", 60):
        commit(storage, database)
    assert read_manifest(storage, PREFIX) == new.manifest


def test_candidates_with_a_missing_part_do_not_replace_any(storage: Storage, database: VersionDatabase) -> None:
    write_version(storage, "1", ["a", "b"], ["i1"])
    before = storage.read_bytes(f"{PREFIX}/{MANIFEST}")
    new = write_pending(storage, ["c"])
    storage.delete_prefix(f"{PREFIX}/recommendations/{new.parts('recommendations')[0].name}")
    with pytest.raises(DataError, match=r"recommendations/.* is missing"):
        commit(storage, database)
    assert storage.read_bytes(f"{PREFIX}/{MANIFEST}") == before


def test_damaged_candidates_can_be_computed_anew(storage: Storage, database: VersionDatabase) -> None:
    write_version(storage, "1", ["a", "b", "c"], ["i1"], part_rows=1)
    database.publish(VersionRow("1"))
    storage.delete_prefix(f"{PREFIX}/recommendations/part-000001-000.parquet")
    new = write_pending(storage, ["c"])
    commit(storage, database)
    assert read_manifest(storage, PREFIX) == new.manifest
    noted = pushed_candidates(storage, "1")[1]
    assert (noted.rows("user_embeddings"), noted.rows("recommendations")) == (3, 2)


def test_a_manifest_that_was_changed_is_not_the_recorded_one(
    storage: Storage, database: VersionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(storage, "1", ["a"], ["i1"])
    sha256 = read_with_sum(storage, PREFIX)[1]
    with caplog.at_level("INFO"):
        require_recorded(storage, database, "1", PREFIX, sha256)
    assert "version 1 has candidates of an earlier program" in caplog.text
    write_pending(storage, ["a", "b"])
    commit(storage, database)
    require_recorded(storage, database, "1", PREFIX, read_with_sum(storage, PREFIX)[1])
    with pytest.raises(DataError, match=rf"{sha256}, which was never recorded for version 1: it was changed"):
        require_recorded(storage, database, "1", PREFIX, sha256)
    with pytest.raises(DataError, match="never recorded"):
        require_recorded(storage, database, "1", "two-tower/1/increments/x", read_with_sum(storage, PREFIX)[1])


def test_prune_removes_replaced_parts_and_not_those_being_computed(storage: Storage, database: VersionDatabase) -> None:
    write_version(storage, "1", ["a", "b"], ["i1"])
    database.publish(VersionRow("1"))
    write_pending(storage, ["a"])
    commit(storage, database)
    write_pending(storage, ["b"], LATER)
    committed = read_manifest(storage, PREFIX)
    with database.publishing_lock("me", 60) as lock:
        assert prune_versions(storage, database, lock, 1).replaced_parts == 3
        assert prune_versions(storage, database, lock, 1).replaced_parts == 0
    left = {key.split("/")[-2] for key in storage.list(PREFIX) if key.endswith(".parquet")}
    assert left == {GENERATION, LATER}
    assert read_manifest(storage, PREFIX) == committed


def test_a_link_to_a_version_is_left_alone(storage: Storage, database: VersionDatabase, tmp_path: Path) -> None:
    elsewhere = open_storage(str(tmp_path / "elsewhere"))
    write_version(elsewhere, "1", ["a"], ["i1"])
    write_version(storage, "2", ["a"], ["i1"])
    Path(storage.path("two-tower", "1")).symlink_to(elsewhere.path("two-tower", "1"))
    with database.publishing_lock("me", 60) as lock:
        pruned = prune_versions(storage, database, lock, 1)
    assert pruned.removed == [] and "symbolic link" in pruned.kept["1"]
    assert elsewhere.exists("two-tower/1/manifest.json")


def test_the_version_of_an_unfinished_run_is_kept(storage: Storage, database: VersionDatabase) -> None:
    """State `stored`, not live: its run may go on days later and needs the model and the candidates."""
    for run in ("ended", "open", "refused", "newest"):
        version = database.reserve(run)
        write_version(storage, version, ["a"], ["i1"])
        database.mark(version, "refused" if run == "refused" else "stored")
        ledger = '{"format_version": 1, "as_of": "2024-05-01T00:00:00+00:00", "command": "run", "settings": {}, '
        ledger += '"steps": {}, "attempt": "a", "owner": "o", "report": %s}' % ("{}" if run == "ended" else "null")
        storage.write_bytes(f"runs/{run}/ledger.json", ledger.encode())
    with database.publishing_lock("me", 60) as lock:
        pruned = prune_versions(storage, database, lock, 1)
    assert pruned.removed == ["3", "1"]
    assert pruned.kept["2"].startswith("run open has not ended")
    assert storage.exists("two-tower/2/weights.safetensors")
