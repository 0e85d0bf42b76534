"""Repair of rows that a publisher wrote after it lost the lock: overwrite them with those of the newest push.

Input: the ids of such rows. The rows of the newest push are pushed again with its version and event timestamp, and an
empty row for ids that it lacks. Only the process that wrote the stale rows has their ids and times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.candidate_store.manifest import read_manifest
from rec_ray.candidate_store.parts import READ_ROWS, StoredCandidates
from rec_ray.feature_store.push_targets import Push, push_frame, tombstone_frame
from rec_ray.logs import LOGGER
from rec_ray.storage.model_store import model_folder
from rec_ray.storage.object_store import Storage
from rec_ray.versions.push_fence import OpenFence, PushRecord


def repair_rows(
    storage: Storage, fence: OpenFence, push: Push, ids: Sequence[str], write: Callable[[pd.DataFrame], None]
) -> int:
    """Overwrite rows with those of the newest push; return their number. push: the push that lost the lock.

    The repair is repeated if another push began meanwhile. If no later push than `push` exists, nothing is changed:
    the next push overwrites these rows.

    Raises:
        DataError, StorageError: the candidates of the newest push cannot be read.
    """
    done: list[PushRecord] = []
    newest = fence.newest_pushes()
    while newest and newest != done and newest[0].pushed_at > push.published_at:
        for frame in _frames(storage, newest, push, pa.array(ids, pa.string())):
            write(frame)
        done, newest = newest, fence.newest_pushes()
    repaired = len(ids) if done else 0
    if repaired:
        LOGGER.warning(
            "%s rows of version %s, written to %s after the lock was lost, were overwritten with those of version %s",
            f"{repaired:,}",
            push.version,
            push.target.source,
            done[0].version,
        )
    return repaired


def _frames(storage: Storage, pushes: Sequence[PushRecord], push: Push, ids: pa.Array) -> list[pd.DataFrame]:
    """Return the frames of the newest push for some ids. pushes: as from `OpenFence.newest_pushes`."""
    now = dataclasses.replace(push, version=pushes[0].version, published_at=pushes[0].pushed_at)
    left, frames, known = ids, [], False
    for each in pushes:
        prefix = f"{model_folder(each.version)}/{each.name}"
        candidates = StoredCandidates(prefix, read_manifest(storage, prefix))
        if push.folder not in candidates.manifest.parts:
            continue
        known = True
        for table in _rows_of(storage, candidates, push, left):
            frames.append(push_frame(table, push.target, now.version, now.published_at))
            left = left.filter(pc.invert(pc.is_in(left, value_set=table[push.target.entity].combine_chunks())))
    if known and len(left):
        frames.append(tombstone_frame(left, push.target, now.version, now.published_at, push.sizes))
    return frames


def _rows_of(storage: Storage, candidates: StoredCandidates, push: Push, ids: pa.Array) -> list[pa.Table]:
    found = []
    for path in candidates.paths(storage, push.folder):
        with storage.filesystem.open_input_file(path) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(batch_size=READ_ROWS):
                table = pa.Table.from_batches([batch])
                mine = table.filter(pc.is_in(table[push.target.entity], value_set=ids))
                if mine.num_rows:
                    found.append(mine)
    return found
