"""Stored rows come back as they were written, and what cannot be read is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.errors import StorageError
from rec_ray.storage import open_storage
from rec_ray.stored_rows import read_rows

pytestmark = pytest.mark.usefixtures("local_ray")


def test_all_files_of_a_folder_are_read(tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(pa.table({"n": range(number * 10, number * 10 + 10)}), tmp_path / f"part-{number}.parquet")
    read = read_rows(open_storage(str(tmp_path)), str(tmp_path)).take_all()
    assert sorted(row["n"] for row in read) == list(range(30))


def test_a_file_for_every_cpu_is_read_whole_and_fewer_are_cut(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    for files, cut in ((1, True), (2, False), (3, False)):
        folder = tmp_path / f"{files} files"
        folder.mkdir()
        for number in range(files):
            pq.write_table(pa.table({"n": np.arange(1000) + 1000 * number}), folder / f"part-{number}.parquet")
        blocks = read_rows(storage, str(folder)).materialize()
        assert (blocks.num_blocks() > files) == cut, f"{files} files on two CPUs"
        assert blocks.sum("n") == sum(range(1000 * files))


def test_a_damaged_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "few.parquet"
    pq.write_table(pa.table({"n": range(1000)}), path, compression="none")
    path.write_bytes(path.read_bytes()[:-20])
    storage = open_storage(str(tmp_path))
    for name in ("few.parquet", "none.parquet"):
        with pytest.raises(StorageError, match=rf"{name} cannot be read: .*; is it complete\?"):
            read_rows(storage, str(tmp_path / name))
