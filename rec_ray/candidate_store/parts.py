"""The Parquet parts of stored candidates: their sums, slices of about equal size, and who is in one version only.

A store and the manifest of candidates come in; places to read and ids go out, a bounded number at a time. It does not
know what is done with the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.errors import DataError, SchemaError
from rec_ray.storage.object_store import Storage

READ_ROWS = 65_536
"""Rows of a part that are read at a time when only ids are wanted."""


@dataclass(frozen=True)
class PartSlice:
    """Rows `start` to `stop` of a part; path: in the words of the store's file system."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class StoredCandidates:
    """The candidates of one version: the key of their folder, and their manifest."""

    prefix: str
    manifest: Mapping[str, Any]

    @property
    def version(self) -> str:
        """The version that they were computed with."""
        return str(self.manifest["version"])

    def parts(self, folder: str) -> list[dict[str, Any]]:
        """Return the parts of a folder: name, rows, and sum and bytes where they were noted.

        Raises:
            SchemaError: the manifest does not list the folder.
        """
        if folder not in self.manifest["parts"]:
            raise SchemaError(f"the manifest of the candidates lists no {folder!r}")
        parts: list[dict[str, Any]] = self.manifest["parts"][folder]
        return parts

    def paths(self, storage: Storage, folder: str) -> list[str]:
        """Return the paths of the parts of a folder."""
        return [storage.path(self.prefix, folder, part["name"]) for part in self.parts(folder)]

    def rows(self, folder: str) -> int:
        """Return how many rows a folder has."""
        return sum(int(part["rows"]) for part in self.parts(folder))

    def slices(self, storage: Storage, folder: str, rows: int) -> list[PartSlice]:
        """Return the rows of a folder in slices of at most `rows`."""
        return [
            PartSlice(path, start, min(start + rows, part["rows"]))
            for path, part in zip(self.paths(storage, folder), self.parts(folder), strict=True)
            for start in range(0, part["rows"], rows)
        ]


def check_part(storage: Storage, key: str, part: Mapping[str, Any]) -> None:
    """Compare a part with the sum in the manifest; one that was noted without a sum is not read.

    Raises:
        DataError: it is missing or was changed.
        StorageError: the store cannot be read.
    """
    if "sha256" not in part:
        return
    size = storage.size(key)
    found = None if size is None else hashlib.sha256(storage.read_bytes(key)).hexdigest()
    if found != part["sha256"]:
        how = "is missing" if found is None else "does not have the SHA-256 sum of the manifest"
        raise DataError(f"candidates are damaged: {storage.uri(key)} {how}; run `rec-ray candidates VERSION` again")


def read_slice(storage: Storage, piece: PartSlice, batch_rows: int) -> Iterator[pa.Table]:
    """Read a slice, `batch_rows` at a time from its start on; row groups outside it are not read."""
    with storage.filesystem.open_input_file(piece.path) as handle:
        file = pq.ParquetFile(handle)
        groups, first, at = [], None, 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if at < piece.stop and at + rows > piece.start:
                groups.append(number)
                first = at if first is None else first
            at += rows
        if first is None:
            return
        at = first
        rest = pa.Table.from_batches([], file.schema_arrow)
        for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups):
            start, stop = max(piece.start - at, 0), min(piece.stop - at, batch.num_rows)
            at += batch.num_rows
            if start < stop:
                # The batches of the file begin elsewhere: a push of one batch would become two.
                rest = pa.concat_tables([rest, pa.Table.from_batches([batch.slice(start, stop - start)])])
            if rest.num_rows >= batch_rows:
                yield rest.slice(0, batch_rows)
                rest = rest.slice(batch_rows)
            if at >= piece.stop:
                break
        if rest.num_rows:
            yield rest


def departed_ids(
    storage: Storage, before: Sequence[str], after: Sequence[str], column: str, bucket: int, buckets: int
) -> pa.Array:
    """Return the ids that some part of `before` has and none of `after`, each once.

    Only ids of one bucket are looked at, by a hash, so that memory is bounded by how many buckets there are.
    """
    return _only_in_first(_ids(storage, before, column, bucket, buckets), _ids(storage, after, column, bucket, buckets))


def _only_in_first(first: pa.Array, second: pa.Array) -> pa.Array:
    return first.filter(pc.invert(pc.is_in(first, value_set=second)))


def _ids(storage: Storage, paths: Sequence[str], column: str, bucket: int, buckets: int) -> pa.Array:
    found = pa.array([], pa.string())
    for path in paths:
        with storage.filesystem.open_input_file(path) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(batch_size=READ_ROWS, columns=[column]):
                ids = batch.column(0).cast(pa.string())
                if buckets > 1:
                    hashes = pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)
                    ids = ids.filter(pa.array(hashes % buckets == bucket))
                found = pa.concat_arrays([found, ids])
    return pc.unique(found)
