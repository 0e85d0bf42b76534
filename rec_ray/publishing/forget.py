"""Deletion of users and items from candidates, data of unfinished runs, reports and the online store.

Input: a `Publisher` and ids. Afterwards no later run reads them, no stored list contains them, and the online store has
no row of them. Offline sources, backups and other outside places are reported and left to their owner.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rec_ray.candidate_store.erasure import Erased
from rec_ray.candidate_store.increments import increments_folder
from rec_ray.candidate_store.manifest import (
    ITEM_FOLDER,
    MANIFEST,
    PENDING,
    USER_FOLDER,
    CandidatesManifest,
    Part,
    new_generation,
    read_manifest,
    write_manifest,
)
from rec_ray.candidate_store.writer import ROW_GROUP
from rec_ray.errors import DataError, FeatureStoreError
from rec_ray.feature_store.online_deletion import delete_online_rows
from rec_ray.logs import LOGGER
from rec_ray.publishing.commit_candidates import candidates_name
from rec_ray.publishing.previous_ids import replaced_folder
from rec_ray.publishing.publish import Publisher
from rec_ray.publishing.push import find_push_targets
from rec_ray.retrieval.profiles.data_profile import PROFILE, DataProfile
from rec_ray.retrieval.profiles.list_profile import LISTS, ListProfile
from rec_ray.runs.ledger import RUNS
from rec_ray.storage.model_store import candidates_folder, stored_versions
from rec_ray.storage.object_store import Storage
from rec_ray.versions.lock import PublishingLock
from rec_ray.versions.registry import VersionDatabase

NOT_TOUCHED = (
    "sources of the offline store",
    "backups, and copies that others made",
    "vocabularies of stored models, which hold ids of items",
    "logs of the cluster",
)
"""Places that only their owner can clear. The log of this program contains no ids."""


@dataclass(frozen=True)
class Forgotten:
    """Result of forgetting: ids by entity, rewritten folders of candidates and files of runs and reports, views."""

    users: int
    items: int
    candidates: list[str]
    files: list[str]
    views: list[str]
    republish: str | None
    not_touched: tuple[str, ...] = NOT_TOUCHED


def forget(publisher: Publisher, users: Sequence[str], items: Sequence[str]) -> Forgotten:
    """Forget users and items; may be repeated after a failure.

    `republish` of the result is the live version if its stored lists changed and must be pushed again.

    Raises:
        LockedError: another run publishes.
        FeatureStoreError: rows cannot be deleted from the online store; the rest is done.
        StorageError: the store cannot be read or written.
    """
    storage, database = publisher.storage, publisher.database
    erased = Erased.of(users, items)
    with publisher.lock() as lock:
        # First, so that later writes leave them out even if this process dies.
        database.erase(users, items)
        rewritten, changed_lists = [], False
        live = database.live()
        for version in stored_versions(storage):
            for prefix in _prefixes(storage, version):
                for name in (MANIFEST, PENDING):
                    lock.check()
                    lists = rewrite_candidates(storage, database, version, prefix, name, erased)
                    if lists is not None:
                        rewritten.append(storage.uri(prefix))
                        changed_lists = changed_lists or (lists and version == live)
            if storage.uri(candidates_folder(version)) in rewritten and version == live:
                _record_live(publisher, version, lock)
        files = _rewrite_files(storage, erased, users, items)
        views = _delete_online(publisher, users, items)
    return Forgotten(len(users), len(items), rewritten, files, views, live if changed_lists else None)


def _prefixes(storage: Storage, version: str) -> list[str]:
    """Return the keys of all folders in the format of candidates below a version."""
    below = [increments_folder(version), replaced_folder(version)]
    return [candidates_folder(version), *(f"{key}/{name}" for key in below for name in storage.folders(key))]


def rewrite_candidates(
    storage: Storage, database: VersionDatabase, version: str, prefix: str, name: str, erased: Erased
) -> bool | None:
    """Rewrite the parts of candidates that contain forgotten ids; return whether lists of other users changed.

    None: there was nothing to rewrite. Parts that no manifest lists any more are deleted, because they contain the ids.
    """
    if not storage.exists(f"{prefix}/{name}"):
        return None
    try:
        manifest = read_manifest(storage, prefix, name)
    except DataError as error:
        LOGGER.warning("%s; delete the folder: forgotten ids may be in it", error)
        return None
    generation, parts, old, others = new_generation(), dict(manifest.parts), [], False
    for folder, each in manifest.parts.items():
        kept: list[Part] = []
        for part in each:
            key = f"{prefix}/{folder}/{part.name}"
            with storage.filesystem.open_input_file(storage.path(key)) as handle:
                table = pq.read_table(handle)
            left = erased.without(table)
            if left is table:
                kept.append(part)
                continue
            others = others or _lists_changed(table, left)
            old.append(key)
            new = f"{generation}/{part.name.replace('/', '-')}"
            kept.append(_write_part(storage, f"{prefix}/{folder}/{new}", new, left))
        parts[folder] = tuple(kept)
    if old:
        changed = _with_parts(manifest, parts, generation)
        if name == MANIFEST:
            sha256 = hashlib.sha256(changed.to_bytes()).hexdigest()
            database.record_candidates(version, candidates_name(version, prefix), sha256)
        write_manifest(storage, prefix, changed, name)
    if name == MANIFEST:
        list_names = {f"{prefix}/{folder}/{part.name}" for folder, each in parts.items() for part in each}
        pending = storage.exists(f"{prefix}/{PENDING}")
        old += [] if pending else [key for key in storage.list(prefix) if _is_part(key) and key not in list_names]
    for key in dict.fromkeys(old):
        storage.delete_prefix(key)
    return others if old else None


def _is_part(key: str) -> bool:
    return key.endswith(".parquet")


def _lists_changed(before: pa.Table, after: pa.Table) -> bool:
    """Return whether the remaining rows changed."""
    return before.num_rows == after.num_rows


def _write_part(storage: Storage, key: str, name: str, table: pa.Table) -> Part:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP)
    data = buffer.getvalue().to_pybytes()
    storage.write_checked(key, data)
    return Part(name, table.num_rows, len(data), hashlib.sha256(data).hexdigest())


def _with_parts(
    manifest: CandidatesManifest, parts: dict[str, tuple[Part, ...]], generation: str
) -> CandidatesManifest:
    changed = dataclasses.replace(manifest, parts=parts, generation=generation)
    items = changed.items if changed.is_increment else changed.rows(ITEM_FOLDER)
    return dataclasses.replace(changed, users=changed.rows(USER_FOLDER), items=items)


def _record_live(publisher: Publisher, version: str, lock: PublishingLock) -> None:
    """Insert a row of the live version with the sum of its rewritten candidates."""
    row = publisher.database.get(version)
    data = publisher.storage.read_bytes(f"{candidates_folder(version)}/{MANIFEST}")
    if row is not None:
        sha256 = hashlib.sha256(data).hexdigest()
        publisher.database.publish(dataclasses.replace(row, candidates_sha256=sha256), lock)


def _rewrite_files(storage: Storage, erased: Erased, users: Sequence[str], items: Sequence[str]) -> list[str]:
    """Rewrite the data of unfinished runs, profiles, and reports of versions without their examples of users."""
    done = []
    for key in storage.list(RUNS):
        if key.endswith(".parquet"):
            with storage.filesystem.open_input_file(storage.path(key)) as handle:
                table = pq.read_table(handle)
            left = erased.without(table)
            if left is not table:
                buffer = pa.BufferOutputStream()
                pq.write_table(left, buffer)
                storage.write_checked(key, buffer.getvalue().to_pybytes())
                done.append(storage.uri(key))
        elif key.endswith(PROFILE) and _drop_from_profile(storage, key, users, items):
            done.append(storage.uri(key))
    for version in stored_versions(storage):
        for key in storage.list(f"two-tower/{version}"):
            if key.endswith((PROFILE, LISTS)) and _drop_from_profile(storage, key, users, items):
                done.append(storage.uri(key))
            if key.endswith("report.json") and _drop_examples(storage, key, [*users, *items]):
                done.append(storage.uri(key))
                page = key.removesuffix("json") + "html"
                # `rec-ray report` renders it again from the facts.
                storage.delete_prefix(page)
                done.append(storage.uri(page))
    return done


def _drop_from_profile(storage: Storage, key: str, users: Sequence[str], items: Sequence[str]) -> bool:
    """Remove the sampled facts about users and items from a profile; a damaged one is deleted."""
    data, (gone, withdrawn) = storage.read_bytes(key), (pa.array(ids, pa.string()) for ids in (users, items))
    try:
        if key.endswith(LISTS):
            left = ListProfile.from_json(data, key).without(gone).to_json()
        else:
            left = DataProfile.from_json(data, key).without(gone, withdrawn).to_json()
    except DataError as error:
        LOGGER.warning("%s; it is deleted, because forgotten ids may be in it", error)
        storage.delete_prefix(key)
        return True
    if left != data:
        storage.write_checked(key, left)
    return left != data


def _drop_examples(storage: Storage, key: str, ids: Sequence[str]) -> bool:
    """Remove the examples of users from the facts of a report when one of the ids is in it."""
    data = storage.read_bytes(key)
    if not any(json.dumps(each).encode() in data for each in ids):
        return False
    facts: dict[str, Any] = json.loads(data)
    with contextlib.suppress(KeyError, TypeError):
        facts["evaluation"]["examples"] = []
    storage.write_checked(key, json.dumps(facts).encode())
    return True


def _delete_online(publisher: Publisher, users: Sequence[str], items: Sequence[str]) -> list[str]:
    targets = find_push_targets(publisher.store, publisher.settings)
    views: list[str] = []
    for folder, ids in ((USER_FOLDER, users), (ITEM_FOLDER, items)):
        if ids:
            target = targets[folder]
            kind = target.types.get(target.key, pa.string())
            try:
                keys = pa.array(list(ids), pa.string()).cast(kind).to_pylist()
            except pa.ArrowInvalid:
                raise FeatureStoreError(f"the join key {target.key!r} is {kind}; got {ids[0]!r}") from None
            views += delete_online_rows(publisher.store, target.key, keys)
    return views
