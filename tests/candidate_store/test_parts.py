"""Slices of stored candidates are read whole, in batches that begin where the slice does."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.candidate_store.parts import PartSlice, StoredCandidates, check_part, read_slice
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
    candidates = StoredCandidates("made", {"version": 3, "parts": {"lists": [{"name": "a.parquet", "rows": ROWS}]}})
    assert candidates.version == "3" and candidates.rows("lists") == ROWS
    assert [(piece.start, piece.stop) for piece in candidates.slices(stored, "lists", 4)] == [(0, 4), (4, 8), (8, 10)]
    with pytest.raises(SchemaError, match="lists no 'others'"):
        candidates.rows("others")


def test_a_part_is_compared_with_its_sum(stored):
    check_part(stored, "made/lists/a.parquet", {"name": "a.parquet"})
    with pytest.raises(DataError, match=r"a\.parquet does not have the SHA-256 sum"):
        check_part(stored, "made/lists/a.parquet", {"name": "a.parquet", "sha256": "0"})
    with pytest.raises(DataError, match=r"b\.parquet is missing"):
        check_part(stored, "made/lists/b.parquet", {"name": "b.parquet", "sha256": "0"})
