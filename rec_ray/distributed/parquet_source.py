"""Stored Parquet files as a Ray Dataset whose tasks keep all CPUs busy to the end.

Input: an address in the object store. Output: a `ray.data.Dataset` that streams its rows, or an error that names the
address.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from rec_ray.errors import StorageError
from rec_ray.storage.object_store import Storage

ROW_GROUP = 5000
"""Rows per row group of tables that are read here; a task reads at least one row group."""
PIECE_BYTES = 32 * 2**20
"""Maximum uncompressed bytes per task; a larger row group is one task."""
FOOTERS_AT_ONCE = 32


@dataclass(frozen=True)
class Piece:
    """Consecutive row groups of a file, for one task."""

    file: str
    groups: range
    rows: int
    bytes: int


def submit_at_once(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Submit all tasks of a dataset to Ray at once, so that they wait for a CPU in Ray itself; return the dataset.

    Ray Data (2.60) gives a dataset one CPU for its first second, and notices the end of a task a tenth of a second
    late.
    Without its limits nothing holds back results, so they must be small, or all needed in the object store anyway.
    """
    dataset.context.op_resource_reservation_enabled = False
    return dataset


def read_rows(storage: Storage, path: str) -> ray.data.Dataset:
    """Return the rows of a file or of the files of a folder, for tasks as in `submit_at_once`.

    path: as `Storage.path` returns it.

    Raises:
        StorageError: there is no file, or a footer cannot be read.
    """
    files = _files(storage, path)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        groups = list(pool.map(functools.partial(_row_groups, storage.filesystem), files))
    pieces = cut_rows(groups, int(ray.cluster_resources().get("CPU", 1)))
    return submit_at_once(
        ray.data.read_datasource(_Pieces(storage.filesystem, pieces), override_num_blocks=len(pieces))
    )


def cut_rows(files: Sequence[Sequence[Piece]], workers: int) -> list[Piece]:
    """Cut files into pieces that shrink towards the end, so that workers end together (guided self-scheduling,
    Polychronopoulos & Kuck 1987): a piece has at most half of a worker's share of the rows that are left.

    If different tasks read a file and process its rows, they wait for each other; here one task does both.

    files: row groups of each file.  workers: number of concurrent tasks.
    """
    files = sorted((groups for groups in files if groups), key=lambda groups: -sum(group.rows for group in groups))
    left = sum(group.rows for groups in files for group in groups)
    pieces: list[Piece] = []
    for groups in files:
        piece = groups[0]
        for group in groups[1:]:
            rows, size = piece.rows + group.rows, piece.bytes + group.bytes
            if rows * 2 * workers <= left and size <= PIECE_BYTES:
                piece = Piece(piece.file, range(piece.groups.start, group.groups.stop), rows, size)
            else:
                pieces.append(piece)
                left -= piece.rows
                piece = group
        pieces.append(piece)
        left -= piece.rows
    return pieces


def _files(storage: Storage, path: str) -> list[str]:
    with _naming(path):
        if storage.filesystem.get_file_info(path).type != pafs.FileType.Directory:
            return [path]
        below = storage.filesystem.get_file_info(pafs.FileSelector(path))
    files = sorted(info.path for info in below if info.is_file and not info.base_name.startswith((".", "_")))
    if not files:
        raise _unreadable(path, "it holds no files")
    return files


def _row_groups(filesystem: pafs.FileSystem, file: str) -> list[Piece]:
    """Return one piece per row group of a file; for a file without row groups, one empty piece."""
    with _naming(file):
        footer = pq.read_metadata(file, filesystem=filesystem)
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    found = [Piece(file, range(n, n + 1), group.num_rows, group.total_byte_size) for n, group in enumerate(groups)]
    return found or [Piece(file, range(0), 0, 0)]


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Translate errors of a file or folder into ones that name it."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, str(error).strip().splitlines()[-1]) from error


def _unreadable(path: str, why: str) -> StorageError:
    return StorageError(f"{path} cannot be read: {why}; is it complete? Start a new run to write it again")


class _Pieces(Datasource):
    """Data source of Ray Data with one task per piece."""

    def __init__(self, filesystem: pafs.FileSystem, pieces: Sequence[Piece]) -> None:
        self.filesystem, self.pieces = filesystem, pieces

    def get_name(self) -> str:
        """Return the name of the operator for messages and tables of Ray."""
        return "StoredRows"

    def estimate_inmemory_data_size(self) -> int:
        """Return the size of all pieces in bytes."""
        return sum(piece.bytes for piece in self.pieces)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one task per piece and ignore the requested parallelism, else Ray splits the output of tasks."""
        return [
            ReadTask(
                functools.partial(_read, self.filesystem, piece),
                BlockMetadata(num_rows=piece.rows, size_bytes=piece.bytes, exec_stats=None, input_files=[piece.file]),
                per_task_row_limit=per_task_row_limit,
            )
            for piece in self.pieces
        ]


def _read(filesystem: pafs.FileSystem, piece: Piece) -> Iterator[pa.Table]:
    with _naming(piece.file), filesystem.open_input_file(piece.file) as source:
        table = pq.ParquetFile(source, pre_buffer=True).read_row_groups(list(piece.groups), use_threads=False)
    yield table
