"""Stored Parquet as a Ray Dataset whose tasks keep all CPUs busy to the end.

An address in the object store comes in, a `ray.data.Dataset` that streams its rows goes out, or an error that names the
address. It does not know what the rows are.
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
"""Rows of a row group of what is stored to be read here: the least that a task takes."""
PIECE_BYTES = 32 * 2**20
"""The most that a task reads, uncompressed; a row group that has more is read whole."""
FOOTERS_AT_ONCE = 32


@dataclass(frozen=True)
class Piece:
    """Row groups of a file that follow each other, for one task."""

    file: str
    groups: range
    rows: int
    bytes: int


def submit_at_once(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Let the tasks of a dataset wait for a CPU in Ray itself, all of them, and return it.

    Ray Data (2.60) gives a dataset one CPU for its first second, and hears of the end of a task a tenth of a second
    later: ten tasks of 0.25 s took 2.4 s on two CPUs and take 1.4. Nothing holds results back then, so what the tasks
    give back must be small, or wanted in the object store as a whole.
    """
    dataset.context.op_resource_reservation_enabled = False
    return dataset


def read_rows(storage: Storage, path: str) -> ray.data.Dataset:
    """Return the rows of a file or of the files of a folder, for tasks as in `submit_at_once`.

    path: as `Storage.path` gives it.

    Raises:
        StorageError: there is none, or what one says of its rows cannot be read.
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

    Where a file is cut by others than the task that goes on with its rows, these wait for each other: 200,000 users in
    8 files waited for their lists for 15.1 s on two CPUs, and for 11.3 s with a task a file.

    files: the row groups of each.  workers: tasks that run at once.
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
    """Return a piece for each row group of a file; one without rows for a file that has none."""
    with _naming(file):
        footer = pq.read_metadata(file, filesystem=filesystem)
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    found = [Piece(file, range(n, n + 1), group.num_rows, group.total_byte_size) for n, group in enumerate(groups)]
    return found or [Piece(file, range(0), 0, 0)]


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file or the folder in what goes wrong with it."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, str(error).strip().splitlines()[-1]) from error


def _unreadable(path: str, why: str) -> StorageError:
    return StorageError(f"{path} cannot be read: {why}; is it complete? Begin a new run to write it anew")


class _Pieces(Datasource):
    """Pieces of files for Ray Data, a task each."""

    def __init__(self, filesystem: pafs.FileSystem, pieces: Sequence[Piece]) -> None:
        self.filesystem, self.pieces = filesystem, pieces

    def get_name(self) -> str:
        """Return the name of the operator, as in messages and tables of Ray."""
        return "StoredRows"

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all pieces."""
        return sum(piece.bytes for piece in self.pieces)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return a task a piece, whatever is asked for: Ray cuts what tasks gave back where it thinks it too little."""
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
