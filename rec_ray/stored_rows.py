"""Stored Parquet as a Ray Dataset.

An address in the object store comes in, a `ray.data.Dataset` that streams its rows goes out, or an error that names the
address. It does not know what the rows are.
"""

from __future__ import annotations

import pyarrow as pa
import ray.data

from rec_ray.errors import StorageError
from rec_ray.storage import Storage


def read_rows(storage: Storage, path: str) -> ray.data.Dataset:
    """Return the rows of a file or of the files of a folder. path: as `Storage.path` gives it.

    Raises:
        StorageError: there is none, or the first pages of one cannot be read.
    """
    try:
        return ray.data.read_parquet(path, filesystem=storage.filesystem)
    except (OSError, pa.ArrowInvalid) as error:
        # What Ray raises has a task's traceback for its text; the last line says what was wrong.
        why = str(error).strip().splitlines()[-1]
        raise StorageError(f"{path} cannot be read: {why}; is it complete? Begin a new run to write it anew") from error
