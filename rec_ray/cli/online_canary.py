"""Canary of the online store: the lists of a few users as a reader gets them, compared with the stored ones.

Input: settings and the live version. Output: the number of equal lists, and the fault if there is one. Users come from
the first part of the candidates; increments of the live version may have replaced their lists since, so only a missing,
empty or foreign row is a fault.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.parquet as pq

from rec_ray.candidate_store.manifest import RECOMMENDATION_FOLDER, read_manifest
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.config import Settings
from rec_ray.feature_store.push_targets import find_push_target, is_published, read_online
from rec_ray.runs.context import open_feature_store
from rec_ray.schema import ITEM_IDS, MODEL_VERSION, SCORES, USER_ID
from rec_ray.storage.model_store import candidates_folder
from rec_ray.storage.object_store import Storage

ROWS = 200
"""Rows in which users with a list are searched."""


@dataclass(frozen=True)
class Canary:
    """read: users. same: those with a list of the live version. fault: a sentence, or None."""

    read: int
    same: int
    fault: str | None = None


def read_canary(settings: Settings, storage: Storage, live: str, users: int) -> Canary:
    """Read the lists of some users that have one in the candidates of the live version.

    Raises:
        DataError: the candidates of the live version are missing or damaged.
        FeatureStoreError: the online store does not respond.
    """
    store = open_feature_store(settings)
    if not is_published(store, settings.publish):
        return Canary(0, 0)
    folder = candidates_folder(live)
    paths = StoredCandidates(folder, read_manifest(storage, folder)).paths(storage, RECOMMENDATION_FOLDER)
    chosen: list[str] = []
    for path in paths[:1]:
        with storage.filesystem.open_input_file(path) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(batch_size=ROWS, columns=[USER_ID, ITEM_IDS]):
                chosen += [row[USER_ID] for row in batch.to_pylist() if row[ITEM_IDS]][:users]
                break
    if not chosen:
        return Canary(0, 0)
    target = find_push_target(store, settings.publish.recommendation_push_source, USER_ID, [ITEM_IDS, SCORES])
    answer = read_online(store, target, chosen)
    lists = answer[target.fields[ITEM_IDS]]
    stamps = answer[target.fields[MODEL_VERSION]] if MODEL_VERSION in target.fields else [live] * len(chosen)
    empty = [user for user, items in zip(chosen, lists, strict=True) if not items]
    other = [str(stamp) for stamp, items in zip(stamps, lists, strict=True) if items and stamp != live]
    same = len(chosen) - len(empty) - len(other)
    fault = None
    if empty:
        fault = f"the online store has no list for {len(empty)} of {len(chosen)} users who have one in version {live}"
    elif other:
        fault = f"the online store has lists of version {min(other)}, and version {live} is live"
    return Canary(len(chosen), same, f"{fault}; run: rec-ray publish {live}" if fault else None)
