"""Cached vectors in the object store, by the hash of their content: a text, or the bytes of an image.

Input: a store and a folder per model. Output: vectors of hashes. The files are Parquet, and files are only added.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rec_ray.errors import DataError
from rec_ray.storage.object_store import Storage

HASH, VECTOR = "hash", "text_vector"
"""Columns of the files; the second one keeps its name from an earlier cache of texts only."""
VECTORS = pa.list_(pa.float32())


def content_hash(data: bytes) -> str:
    """Return the hash of a content: its SHA-256 sum in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def content_hashes(texts: pa.Array) -> pa.Array:
    """Return the hash of each text, null for null."""
    return pa.array([None if text is None else content_hash(text.encode()) for text in texts.to_pylist()], pa.string())


@dataclass(frozen=True)
class VectorCache:
    """Cached vectors of one model. folder: key of its files."""

    storage: Storage
    folder: str

    def hashes(self) -> pa.Array:
        """Return the hashes that have a vector.

        Raises:
            StorageError: the store cannot be read.
        """
        dataset = self._files()
        return pa.array([], pa.string()) if dataset is None else pc.unique(dataset.to_table(columns=[HASH])[HASH])

    def write(self, hashes: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add vectors: [n, dimensions]. Writing the same hashes again overwrites the same file.

        Raises:
            StorageError: the store cannot be written.
        """
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), vectors.shape[1])
        table = pa.table({HASH: pa.array(hashes, pa.string()), VECTOR: lists}).sort_by(HASH)
        data = io.BytesIO()
        pq.write_table(table, data)
        name = content_hash("".join(table[HASH].to_pylist()).encode())[:24]
        self.storage.write_bytes(f"{self.folder}/{name}.parquet", data.getvalue())

    def read(self, hashes: pa.Array) -> pa.Array:
        """Return the vector of each hash as a list, null for a null hash.

        Raises:
            DataError: a hash has no vector.
            StorageError: the store cannot be read.
        """
        wanted = pc.unique(hashes).drop_null()
        if not len(wanted):
            return pa.nulls(len(hashes), VECTORS)
        dataset = self._files()
        if dataset is None:
            raise DataError(f"{self.storage.uri(self.folder)} has no vectors; start a new run")
        table = dataset.to_table(filter=pads.field(HASH).isin(wanted)).combine_chunks()
        place = pc.index_in(hashes, value_set=table[HASH].combine_chunks(), skip_nulls=True)
        vectors = pc.cast(table[VECTOR].combine_chunks(), VECTORS).take(place)
        missing = vectors.null_count - hashes.null_count
        if missing:
            raise DataError(f"{missing:,} vectors are missing in {self.storage.uri(self.folder)}; start a new run")
        return vectors

    def _files(self) -> Any:
        names = [name for name in self.storage.list(self.folder) if name.endswith(".parquet")]
        if not names:
            return None
        paths = [self.storage.path(self.folder, name.rpartition("/")[2]) for name in names]
        return pads.dataset(paths, filesystem=self.storage.filesystem, format="parquet")
