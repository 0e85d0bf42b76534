"""Stored rows come back as they were written, and what cannot be read is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.distributed.parquet_source import PIECE_BYTES, Piece, cut_rows, read_rows
from rec_ray.errors import StorageError
from rec_ray.storage.object_store import open_storage

pytestmark = pytest.mark.usefixtures("local_ray")


def test_all_files_of_a_folder_are_read(tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(pa.table({"n": range(number * 10, number * 10 + 10)}), tmp_path / f"part-{number}.parquet")
    read = read_rows(open_storage(str(tmp_path)), str(tmp_path)).take_all()
    assert sorted(row["n"] for row in read) == list(range(30))


def test_a_large_file_is_read_by_several_tasks(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": np.arange(1000)}), tmp_path / "one.parquet", row_group_size=100)
    storage = open_storage(str(tmp_path))
    blocks = read_rows(storage, str(tmp_path / "one.parquet")).materialize()
    assert blocks.num_blocks() == 8, "200 rows of 1000 and of 800 on two CPUs; a quarter of 600 is less than 200"
    assert blocks.sum("n") == sum(range(1000))
    limited = read_rows(storage, str(tmp_path / "one.parquet")).limit(150)
    assert limited.count() == 150


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": pa.array([], pa.int32())}), tmp_path / "none.parquet")
    read = read_rows(open_storage(str(tmp_path)), str(tmp_path)).materialize()
    assert read.count() == 0
    assert read.schema().names == ["n"]


def pieces_of(file: str, groups: list[int], group_bytes: int = 1) -> list[Piece]:
    return [Piece(file, range(n, n + 1), rows, group_bytes) for n, rows in enumerate(groups)]


def test_pieces_shrink_towards_the_end() -> None:
    pieces = cut_rows([pieces_of("few", [5, 5]), pieces_of("many", [5] * 20)], workers=2)
    found = [(piece.file, piece.groups, piece.rows) for piece in pieces]
    assert found == [
        ("many", range(5), 25),  # of 110, a quarter is 27.5
        ("many", range(5, 9), 20),  # of 85
        ("many", range(9, 12), 15),  # of 65
        ("many", range(12, 14), 10),  # of 50
        ("many", range(14, 16), 10),  # of 40
        ("many", range(16, 17), 5),  # of 30
        ("many", range(17, 18), 5),
        ("many", range(18, 19), 5),
        ("many", range(19, 20), 5),
        ("few", range(1), 5),
        ("few", range(1, 2), 5),
    ]


def test_a_piece_has_no_more_bytes_than_a_task_may_read() -> None:
    pieces = cut_rows([pieces_of("wide", [10] * 8, group_bytes=PIECE_BYTES // 2)], workers=1)
    assert [piece.rows for piece in pieces] == [20, 20, 20, 10, 10]
    (alone,) = cut_rows([pieces_of("wider", [10], group_bytes=3 * PIECE_BYTES)], workers=1)
    assert alone.rows == 10, "a row group is not cut"


@pytest.mark.parametrize("seed", range(30))
def test_pieces_have_each_row_group_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [rng.integers(0, 50, rng.integers(0, 8)).tolist() for _ in range(rng.integers(0, 6))]
    files = [pieces_of(str(number), groups) for number, groups in enumerate(sizes)]
    pieces = cut_rows(files, workers=int(rng.integers(1, 20)))
    found = sorted((piece.file, group) for piece in pieces for group in piece.groups)
    assert found == sorted((group.file, number) for groups in files for group in groups for number in group.groups)
    assert sum(piece.rows for piece in pieces) == sum(map(sum, sizes))


def test_a_damaged_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "few.parquet"
    pq.write_table(pa.table({"n": range(1000)}), path, compression="none")
    path.write_bytes(path.read_bytes()[:-20])
    storage = open_storage(str(tmp_path))
    for name in ("few.parquet", "none.parquet"):
        with pytest.raises(StorageError, match=rf"{name} cannot be read: .*; is it complete\?"):
            read_rows(storage, str(tmp_path / name))
    pq.write_table(pa.table({"n": range(1000)}), tmp_path / "whole.parquet")
    with pytest.raises(StorageError, match=r"few\.parquet cannot be read"):
        read_rows(storage, str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"empty cannot be read: it holds no files"):
        read_rows(storage, str(tmp_path / "empty"))
