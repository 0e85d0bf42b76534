"""Stored Parquet as a Ray Dataset whose tasks keep all CPUs busy.

An address in the object store comes in, a `ray.data.Dataset` that streams its rows goes out, or an error that names the
address. It does not know what the rows are.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.fs as pafs
import ray
import ray.data

from rec_ray.errors import StorageError
from rec_ray.storage import Storage


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

    Where there is a file for every CPU, a task reads its file and goes on with its rows. Fewer files are cut, by tasks
    of their own which keep their CPU until somebody wants the next piece: 200,000 users in 8 files on two CPUs waited
    for their lists for 15.1 s so, and for 11.3 s with a task a file.

    path: as `Storage.path` gives it.

    Raises:
        StorageError: there is none, or the first pages of one cannot be read.
    """
    try:
        files = _count_files(storage, path)
        whole = files >= ray.cluster_resources().get("CPU", 1)
        dataset = submit_at_once(
            ray.data.read_parquet(path, filesystem=storage.filesystem, override_num_blocks=files if whole else None)
        )
    except (OSError, pa.ArrowInvalid) as error:
        # What Ray raises has a task's traceback for its text; the last line says what was wrong.
        why = str(error).strip().splitlines()[-1]
        raise StorageError(f"{path} cannot be read: {why}; is it complete? Begin a new run to write it anew") from error
    return dataset


def _count_files(storage: Storage, path: str) -> int:
    if storage.filesystem.get_file_info(path).type != pafs.FileType.Directory:
        return 1
    return sum(found.is_file for found in storage.filesystem.get_file_info(pafs.FileSelector(path)))
