"""Slices of stored candidates are read whole, in batches that begin where the slice does."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_versions import write_version

from rec_ray.candidate_store.manifest import CandidatesManifest, Part
from rec_ray.candidate_store.parts import (
    PartSlice,
    StoredCandidates,
    check_part,
    departed_ids,
    read_slice,
    readable_paths,
)
from rec_ray.errors import DataError, SchemaError
from rec_ray.storage.object_store import open_storage

ROWS = 10


@pytest.fixture
def stored(tmp_path):
    """A part of ten users in row groups of four, in a store."""
    table = pa.table({"user_id": [str(number) for number in range(ROWS)], "scores": [[0.5]] * ROWS})
    (tmp_path / "made" / "lists").mkdir(parents=True)
    pq.write_table(table, tmp_path / "made" / "lists" / "a.parquet", row_group_size=4)
    return open_storage(str(tmp_path))


@pytest.mark.parametrize(
    ("start", "stop", "batch_rows", "expected"),
    [
        (0, 10, 3, [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"], ["9"]]),
        # Not one row and two: batches of the file begin at 0 and 3.
        (2, 5, 3, [["2", "3", "4"]]),
        (1, 9, 4, [["1", "2", "3", "4"], ["5", "6", "7", "8"]]),
        (5, 6, 100, [["5"]]),
        (4, 4, 3, []),
        (10, 12, 3, []),
    ],
)
def test_batches_begin_where_the_slice_does(stored, start, stop, batch_rows, expected):
    piece = PartSlice(stored.path("made", "lists", "a.parquet"), start, stop)
    found = list(read_slice(stored, piece, batch_rows))
    assert [batch["user_id"].to_pylist() for batch in found] == expected
    assert all(batch.column_names == ["user_id", "scores"] for batch in found)


def test_slices_cover_every_row_once(stored):
    candidates = StoredCandidates("made", CandidatesManifest("3", {"lists": (Part("a.parquet", ROWS),)}))
    assert candidates.version == "3" and candidates.rows("lists") == ROWS
    assert [(piece.start, piece.stop) for piece in candidates.slices(stored, "lists", 4)] == [(0, 4), (4, 8), (8, 10)]
    with pytest.raises(SchemaError, match="lists no 'others'"):
        candidates.rows("others")


def test_a_part_is_compared_with_its_sum(stored):
    key = "made/lists/a.parquet"
    data = stored.read_bytes(key)
    check_part(stored, key, Part("a.parquet", ROWS))
    check_part(stored, key, Part("a.parquet", ROWS, len(data), hashlib.sha256(data).hexdigest()))
    with pytest.raises(DataError, match=r"a\.parquet does not have the SHA-256 sum"):
        check_part(stored, key, Part("a.parquet", ROWS, len(data), "0" * 64))
    with pytest.raises(DataError, match=r"b\.parquet is missing"):
        check_part(stored, "made/lists/b.parquet", Part("b.parquet", ROWS))


@pytest.mark.parametrize("rows", [ROWS - 1, 10**10])
@pytest.mark.parametrize("with_sum", [True, False])
def test_the_rows_of_the_manifest_are_those_of_the_footer(stored, rows, with_sum):
    key = "made/lists/a.parquet"
    data = stored.read_bytes(key)
    sums = (len(data), hashlib.sha256(data).hexdigest()) if with_sum else ()
    with pytest.raises(DataError, match=rf"a\.parquet has 10 rows instead of {rows:,}"):
        check_part(stored, key, Part("a.parquet", rows, *sums))


def test_damaged_parts_of_earlier_candidates_are_left_out_and_those_of_new_ones_are_not(stored, caplog):
    stored.write_bytes("made/lists/b.parquet", b"PAR1 no footer")
    whole = stored.read_bytes("made/lists/a.parquet")
    stored.write_bytes("made/lists/c.parquet", whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    parts = tuple(Part(name, ROWS) for name in ("a.parquet", "b.parquet", "missing.parquet"))
    candidates = StoredCandidates("made", CandidatesManifest("3", {"lists": parts}))
    paths, lost = readable_paths(stored, candidates, "lists")
    assert paths == [stored.path("made/lists/a.parquet")] and lost == 2 * ROWS
    assert "b.parquet cannot be read" in caplog.text and "missing.parquet cannot be read" in caplog.text
    damaged = stored.path("made/lists/c.parquet")
    ids, unreadable = departed_ids(stored, [*paths, damaged], [], "user_id", 0, 1)
    assert ids.to_pylist() == [str(number) for number in range(ROWS)] and unreadable == [damaged]
    with pytest.raises((OSError, pa.ArrowException)):
        departed_ids(stored, paths, [damaged], "user_id", 0, 1)


def test_the_reader_of_the_page_on_upgrading_reads_the_valid_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "upgrading.md").read_text(encoding="utf-8")
    storage = open_storage(str(tmp_path / "store"))
    write_version(storage, "1", [f"u{number}" for number in range(50)], ["a", "b", "c", "d", "e"], part_rows=20)
    # A part of candidates that are being computed: a pattern would find it.
    storage.write_bytes("two-tower/1/candidates/recommendations/later/part-000000-000.parquet", b"unfinished")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], found)
    assert found["lists"]["user_id"].to_pylist() == [f"u{number}" for number in range(50)]
