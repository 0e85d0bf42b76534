"""Who is noted before candidates are computed anew, and what of that is found by the next push."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stored_versions import write_version

from rec_ray.publishing.previous_ids import note_replaced, pushed_candidates, replaced_folder
from rec_ray.storage.object_store import Storage, open_storage

ITEMS = [f"i{number}" for number in range(6)]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def ids(storage: Storage, folder: str, key: str) -> set[str]:
    """Return who the feature store may hold rows of, by the candidates of version 1 and what they replaced."""
    found: set[str] = set()
    for candidates in pushed_candidates(storage, "1"):
        for path in candidates.paths(storage, folder):
            found |= set(pq.read_table(path, filesystem=storage.filesystem)[key].to_pylist())
    return found


def test_the_ids_outlive_the_candidates(storage: Storage) -> None:
    first = write_version(storage, "1", ["a", "b", "c"], ITEMS, part_rows=2)
    note_replaced(storage, "1")
    storage.delete_prefix(first.prefix)
    write_version(storage, "1", ["b", "d"], ITEMS[:2])

    assert ids(storage, "recommendations", "user_id") == {"a", "b", "c", "d"}
    assert ids(storage, "item_embeddings", "item_id") == set(ITEMS)
    noted = pushed_candidates(storage, "1")[1]
    assert noted.prefix.startswith(replaced_folder("1"))
    (table,) = [pq.read_table(path).column_names for path in noted.paths(storage, "user_embeddings")[:1]]
    assert table == ["user_id"], "ids alone"


def test_candidates_that_were_never_whole_are_said_and_left_out(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_version(storage, "1", ["a"], ITEMS)
    storage.delete_prefix(f"{whole.prefix}/manifest.json")
    note_replaced(storage, "1")

    assert pushed_candidates(storage, "1") == []
    assert "stay in the feature store" in caplog.text
