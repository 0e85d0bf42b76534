"""Writer of candidates: Parquet parts in folders of the object store.

`PartsSink` writes the blocks of a Ray dataset and collects the complete parts and their row counts, which `manifest`
then lists. It uses neither models nor Feast.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data import Datasink

from rec_ray.candidate_store.manifest import (
    Part,
)
from rec_ray.retrieval.profiles.list_profile import ListProfile
from rec_ray.storage.object_store import Storage

ROW_GROUP = 32_768
"""Rows per row group; each row group has its own id dictionary."""
LENGTH = "length of a list"


class PartsSink(Datasink[Any]):
    """Writes each block as one Parquet part in every folder, and collects the complete parts.

    A repeated task overwrites the same parts; parts that a lost task left behind are not collected.
    """

    def __init__(
        self,
        storage: Storage,
        prefix: str,
        folders: dict[str, pa.Schema],
        *,
        counted: Sequence[str] = (),
        lists: str | None = None,
        prepare: Callable[[pa.Table], pa.Table] | None = None,
        measure: Callable[[pa.Table], ListProfile] | None = None,
        generation: str = "",
    ) -> None:
        """folders: folder below `prefix` -> columns of its parts. counted: columns whose values are counted, written or
        not. lists: column of lists whose lengths are counted. prepare: makes the written columns from the rows of a row
        group; lists of dictionaries are stored as such and read as lists of their values. measure: makes the profile of
        a block, which `collect` adds up. generation: subfolder of the
        new parts in each folder, so that parts of an earlier computation stay unchanged.
        """
        self.storage, self.prefix, self.folders, self.counted = storage, prefix, folders, tuple(counted)
        self.lists, self.prepare, self.measure = lists, prepare, measure
        self.measured = ListProfile()
        self.generation = generation
        self.parts: dict[str, list[Part]] = {folder: [] for folder in folders}
        self.counts: Counter[tuple[str, Any]] = Counter()
        """(column, value) -> number of rows, for the counted columns and `LENGTH`; null is not counted."""

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> dict[str, Any]:
        """Write the blocks of one task."""
        return self.write_blocks(ctx.task_idx, blocks)

    def write_blocks(self, task: int, blocks: Iterable[pa.Table]) -> dict[str, Any]:
        """Write blocks and return the input of `collect`. task: unique number of the task."""
        parts: dict[str, list[Part]] = {folder: [] for folder in self.folders}
        counts: Counter[tuple[str, Any]] = Counter()
        measured = ListProfile()
        for number, block in enumerate(blocks):
            if block.num_rows == 0:
                continue
            name = f"{self.generation}/part-{task:06d}-{number:03d}.parquet".lstrip("/")
            encoded = self._encode(block)
            # Upload all folders concurrently.
            with ThreadPoolExecutor(len(encoded)) as pool:
                keys = [f"{self.prefix}/{folder}/{name}" for folder in encoded]
                writing = pool.map(self.storage.write_checked, keys, encoded.values())
                for folder, data in encoded.items():
                    sha256 = hashlib.sha256(data).hexdigest()
                    parts[folder].append(Part(name, block.num_rows, len(data), sha256))
                counts.update(self._count(block))
                if self.measure is not None:
                    measured.merge(self.measure(block))
                list(writing)
        return {"parts": parts, "counts": counts, "measured": measured}

    def _encode(self, block: pa.Table) -> dict[str, memoryview]:
        """Return a block as Parquet, per folder."""
        buffers = {folder: pa.BufferOutputStream() for folder in self.folders}
        with contextlib.ExitStack() as stack:
            writers: dict[str, pq.ParquetWriter] = {}
            # Several row groups, because tasks of a publication read one part from different rows.
            for start in range(0, block.num_rows, ROW_GROUP):
                rows = block.slice(start, ROW_GROUP)
                rows = rows if self.prepare is None else self.prepare(rows)
                for folder, schema in self.folders.items():
                    table = _as_stored(rows, schema)
                    if folder not in writers:
                        writers[folder] = stack.enter_context(_parquet_writer(buffers[folder], table.schema))
                    writers[folder].write_table(table, row_group_size=ROW_GROUP)
        return {folder: memoryview(buffer.getvalue()) for folder, buffer in buffers.items()}

    def _count(self, block: pa.Table) -> Counter[tuple[str, Any]]:
        counts: Counter[tuple[str, Any]] = Counter()
        for column in self.counted:
            for entry in pc.value_counts(block[column].drop_null()).to_pylist():
                counts[column, entry["values"]] += entry["counts"]
        if self.lists is not None:
            found = np.diff(block[self.lists].combine_chunks().offsets.to_numpy())
            for length, count in zip(*np.unique(found, return_counts=True), strict=True):
                counts[LENGTH, int(length)] += int(count)
        return counts

    def on_write_complete(self, write_result: Any) -> None:
        """Collect the parts of the successful tasks."""
        self.collect(write_result.write_returns)

    def collect(self, returns: Iterable[dict[str, Any]]) -> None:
        """Add the results of `write_blocks` of all tasks."""
        for written in returns:
            for folder, parts in written["parts"].items():
                self.parts[folder] += parts
            self.counts.update(written["counts"])
            self.measured.merge(written["measured"])
        for parts in self.parts.values():
            parts.sort(key=lambda part: part.name)

    @property
    def listed_items(self) -> int:
        """Number of items in all lists together."""
        return sum(int(length) * count for (column, length), count in self.counts.items() if column == LENGTH)

    def short_lists(self, k: int) -> int:
        """Return the number of users with fewer than `k` items."""
        return sum(count for (column, length), count in self.counts.items() if column == LENGTH and length < k)


def _as_stored(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema, cast to its types; lists of dictionaries stay unchanged."""
    columns = [
        table[field.name] if _of_dictionary(table.schema.field(field.name).type) else table[field.name].cast(field.type)
        for field in schema
    ]
    return pa.table(columns, pa.schema([field.with_type(c.type) for field, c in zip(schema, columns, strict=True)]))


def _of_dictionary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_dictionary(kind.value_type))


def _parquet_writer(sink: pa.BufferOutputStream, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer with Parquet options per column type.

    Vectors and scores neither repeat nor compress, and no query filters by them; ids are filtered by their statistics.
    """
    leaves = {
        field.name if not pa.types.is_list(field.type) else f"{field.name}.list.element": field for field in schema
    }
    floats = {
        leaf
        for leaf, field in leaves.items()
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type)
    }
    return pq.ParquetWriter(
        sink,
        schema,
        compression={leaf: "none" if leaf in floats else "snappy" for leaf in leaves},
        use_dictionary=[leaf for leaf, field in leaves.items() if _of_dictionary(field.type)],
        dictionary_pagesize_limit=2**30,
        write_batch_size=2**17,
        write_statistics=[leaf for leaf, field in leaves.items() if not pa.types.is_list(field.type)],
        # Otherwise readers would get dictionaries instead of values.
        store_schema=False,
    )
