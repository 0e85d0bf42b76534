"""Parquet parts of stored candidates: sums, slices of about equal size, and ids that only one version has.

Input: a store and the manifest of candidates. Output: paths to read, and ids, a bounded number at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.candidate_store.manifest import CandidatesManifest, Part, candidates_command, parts_of
from rec_ray.errors import DataError
from rec_ray.logs import LOGGER
from rec_ray.storage.object_store import Storage

READ_ROWS = 65_536
"""Rows per read when only ids are needed."""


@dataclass(frozen=True)
class PartSlice:
    """Rows `start` to `stop` of a part. path: as the store's file system writes it."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class StoredCandidates:
    """Candidates of one version: the key of their folder, and their manifest."""

    prefix: str
    manifest: CandidatesManifest

    @property
    def version(self) -> str:
        """Version of the model that computed them."""
        return self.manifest.version

    def parts(self, folder: str) -> tuple[Part, ...]:
        """Return the parts of a folder.

        Raises:
            SchemaError: the manifest does not list the folder.
        """
        return parts_of(self.manifest, folder)

    def paths(self, storage: Storage, folder: str) -> list[str]:
        """Return the paths of the parts of a folder."""
        return [storage.path(self.prefix, folder, part.name) for part in self.parts(folder)]

    def rows(self, folder: str) -> int:
        """Return the number of rows of a folder."""
        return sum(part.rows for part in self.parts(folder))

    def slices(self, storage: Storage, folder: str, rows: int) -> list[PartSlice]:
        """Return the rows of a folder in slices of at most `rows`."""
        return [
            PartSlice(path, start, min(start + rows, part.rows))
            for path, part in zip(self.paths(storage, folder), self.parts(folder), strict=True)
            for start in range(0, part.rows, rows)
        ]


def check_part(storage: Storage, key: str, part: Part) -> None:
    """Compare a part with the sum in the manifest, and the rows in its Parquet footer with the rows in the manifest.

    Raises:
        DataError: it is missing, was changed, or has another number of rows.
        StorageError: the store cannot be read.
    """
    size = storage.size(key)
    if size is None:
        raise DataError(_damaged(storage, key, "is missing"))
    if part.sha256 is None:
        found = _footer_rows(storage, key)
    else:
        data = storage.read_bytes(key)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise DataError(_damaged(storage, key, "does not have the SHA-256 sum of the manifest"))
        found = _rows_in(pa.BufferReader(data))
    if found != part.rows:
        how = "is no Parquet file" if found is None else f"has {found:,} rows instead of {part.rows:,}"
        raise DataError(_damaged(storage, key, how))


def _damaged(storage: Storage, key: str, how: str) -> str:
    return f"candidates are damaged: {storage.uri(key)} {how}; run `{candidates_command(key)}` again"


def _footer_rows(storage: Storage, key: str) -> int | None:
    if storage.size(key) is None:
        return None
    with storage.filesystem.open_input_file(storage.path(key)) as handle:
        return _rows_in(handle)


def _rows_in(source: pa.NativeFile) -> int | None:
    """Return the number of rows in a Parquet footer; None if the file is not Parquet."""
    try:
        return int(pq.ParquetFile(source).metadata.num_rows)
    # Also OSError, which pyarrow raises for a footer that is not Thrift.
    except (OSError, pa.ArrowException):
        return None


def readable_paths(storage: Storage, candidates: StoredCandidates, folder: str) -> tuple[list[str], int]:
    """Return the paths of the parts of a folder with readable footers, and the number of rows of the others.

    For reading ids only: a damaged part must not prevent the use of the others.

    Raises:
        StorageError: the store cannot be read.
    """
    paths, lost = [], 0
    for part in candidates.manifest.parts.get(folder, ()):
        key = f"{candidates.prefix}/{folder}/{part.name}"
        if _footer_rows(storage, key) is None:
            LOGGER.warning("%s cannot be read; the ids of its %s rows are unknown", storage.uri(key), f"{part.rows:,}")
            lost += part.rows
        else:
            paths.append(storage.path(key))
    return paths, lost


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
                # Batches of the file do not start at the slice, so one pushed batch would become two.
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
) -> tuple[pa.Array, list[str]]:
    """Return the distinct ids of `before` that `after` lacks, and the unreadable parts of `before`.

    Only ids of one hash bucket are kept, so the number of buckets bounds the memory. All parts of `after` must be
    readable; otherwise users of an unreadable part would count as departed.
    """
    kept, unreadable = _ids(storage, before, column, bucket, buckets, strict=False)
    return _only_in_first(kept, _ids(storage, after, column, bucket, buckets, strict=True)[0]), unreadable


def _only_in_first(first: pa.Array, second: pa.Array) -> pa.Array:
    return first.filter(pc.invert(pc.is_in(first, value_set=second)))


def _ids(
    storage: Storage, paths: Sequence[str], column: str, bucket: int, buckets: int, *, strict: bool
) -> tuple[pa.Array, list[str]]:
    """Return the distinct ids of some parts, and the unreadable parts. strict: raise for unreadable parts."""
    found, unreadable = [pa.array([], pa.string())], []
    for path in paths:
        try:
            with storage.filesystem.open_input_file(path) as handle:
                for batch in pq.ParquetFile(handle).iter_batches(batch_size=READ_ROWS, columns=[column]):
                    ids = batch.column(0).cast(pa.string())
                    if buckets > 1:
                        hashes = pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)
                        ids = ids.filter(pa.array(hashes % buckets == bucket))
                    found.append(ids)
        except (OSError, pa.ArrowException):
            if strict:
                raise
            unreadable.append(path)
    return pc.unique(pa.concat_arrays(found)), unreadable
