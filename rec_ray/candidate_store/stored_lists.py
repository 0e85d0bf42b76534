"""Stored lists of recommendations, read from the object store for a version that no feature store serves.

Input: a store and a user. Output: the user's list and the version that computed it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from rec_ray.candidate_store.manifest import RECOMMENDATION_FOLDER, read_manifest
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.errors import DataError
from rec_ray.schema import ITEM_IDS, SCORES, USER_ID
from rec_ray.storage.model_store import candidates_folder, stored_versions
from rec_ray.storage.object_store import Storage


@dataclass(frozen=True)
class StoredList:
    """The list of one user."""

    version: str
    user_id: str
    item_ids: list[str]
    scores: list[float]


def newest_candidates(storage: Storage) -> StoredCandidates:
    """Return the candidates of the newest version that has candidates.

    Raises:
        DataError: no version has candidates.
    """
    for version in stored_versions(storage):
        try:
            return StoredCandidates(candidates_folder(version), read_manifest(storage, candidates_folder(version)))
        except DataError:
            continue
    raise DataError(f"no candidates are stored at {storage.uri('candidates')}; run: rec-ray run")


def any_user(storage: Storage, candidates: StoredCandidates) -> str:
    """Return the first user with a list."""
    path = candidates.paths(storage, RECOMMENDATION_FOLDER)[0]
    with storage.filesystem.open_input_file(path) as handle:
        first = next(pq.ParquetFile(handle).iter_batches(batch_size=1, columns=[USER_ID]))
    return str(first[USER_ID][0].as_py())


def read_list(storage: Storage, candidates: StoredCandidates, user_id: str) -> StoredList:
    """Return the list of a user.

    Raises:
        DataError: the candidates have no list for the user.
    """
    paths = candidates.paths(storage, RECOMMENDATION_FOLDER)
    rows = ds.dataset(paths, format="parquet", filesystem=storage.filesystem).to_table(
        columns=[USER_ID, ITEM_IDS, SCORES], filter=ds.field(USER_ID) == user_id
    )
    if not rows.num_rows:
        raise DataError(f"version {candidates.version} has no list for user {user_id!r}; is the id right?")
    row = rows.slice(0, 1).to_pylist()[0]
    return StoredList(candidates.version, user_id, row[ITEM_IDS], row[SCORES])
