"""Increments: newer lists for users with recent events, made between two trainings, beside a version's candidates.

Each increment is a folder of its own. Input: a storage and a version. Output: names, times and items. Other modules
compute and publish the lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from rec_ray.candidate_store.erasure import Erased
from rec_ray.candidate_store.manifest import (
    ITEM_FOLDER,
    MANIFEST,
    TIMELINE_FOLDER,
    CandidatesManifest,
    candidates_command,
    read_manifest,
    read_parts,
)
from rec_ray.errors import ConfigError, DataError, list_names
from rec_ray.schema import ITEM_ID
from rec_ray.storage.model_store import candidates_folder, model_folder
from rec_ray.storage.object_store import Storage

PUBLISHED = "published.json"
NEWEST, LAST = "newest", "last"
"""Command-line values for the newest increment, and for the time of the newest candidates."""


def increments_folder(version: str) -> str:
    """Return the key of the folder with the increments of a version."""
    return f"{model_folder(version)}/increments"


@dataclass(frozen=True)
class Increment:
    """A new increment: its name, the time of its first event, and the items of the version, in order."""

    name: str
    since: datetime
    item_ids: pa.Array


def begin_increment(storage: Storage, version: str, since: str, as_of: datetime) -> Increment:
    """Name a new increment of a version. since: as in `start_of_increment`; as_of: the instant of this run.

    Raises:
        ConfigError: `since` is no time, or lies in the future.
        DataError: the version has no candidates.
    """
    candidates = candidates_folder(version)
    start = start_of_increment(since, storage, candidates, increments_folder(version), as_of)
    items = read_parts(storage, candidates, read_manifest(storage, candidates), ITEM_FOLDER)
    return Increment(new_increment(as_of), start, items.sort_by(ITEM_ID)[ITEM_ID].combine_chunks())


def new_increment(as_of: datetime) -> str:
    """Return the name of an increment; names sort by time."""
    return f"{as_of.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"


@dataclass(frozen=True)
class RecordedTimelines:
    """Records of the timelines that candidates were computed from.

    parts: paths of the parts of each record, the oldest record first. erased: users and items forgotten since.
    """

    storage: Storage
    parts: list[list[str]]
    erased: Erased = field(default_factory=Erased)


def find_recorded_timelines(storage: Storage, version: str, erased: Erased) -> RecordedTimelines | None:
    """Return the records of a version and of its increments; None if an earlier program computed its candidates.

    Raises:
        DataError: the version has no candidates, or they are damaged.
    """
    candidates, folder = candidates_folder(version), increments_folder(version)
    keys = [f"{folder}/{name}" for name in storage.folders(folder)]
    manifests = {key: read_manifest(storage, key) for key in keys if storage.exists(f"{key}/{MANIFEST}")}
    whole = read_manifest(storage, candidates)
    if TIMELINE_FOLDER not in whole.parts or whole.as_of is None:
        return None
    # Increments of earlier candidates of this version say nothing about the present ones.
    later = {key: each for key, each in manifests.items() if each.as_of is not None and each.as_of >= whole.as_of}
    ordered = [(candidates, whole), *sorted(later.items())]
    return RecordedTimelines(
        storage,
        [
            [storage.path(key, TIMELINE_FOLDER, part.name) for part in each.parts.get(TIMELINE_FOLDER, ())]
            for key, each in ordered
        ],
        erased,
    )


def published_increments(storage: Storage, folder: str) -> list[str]:
    """Return the names of the published increments, oldest first. folder: key of all increments of a version."""
    return [name for name in storage.folders(folder) if storage.exists(f"{folder}/{name}/{PUBLISHED}")]


def find_increment(storage: Storage, folder: str, name: str) -> str:
    """Return the name of a complete increment. folder: key of all increments of a version. name: or `newest`.

    Raises:
        DataError: there is none, or a newer one was published; older lists must not replace newer ones.
    """
    there = [entry for entry in storage.folders(folder) if storage.exists(f"{folder}/{entry}/{MANIFEST}")]
    if name == NEWEST and there:
        return max(there)
    if name not in there:
        raise DataError(
            f"{storage.uri(folder)} holds no increment {name!r}; it has {list_names(there)}. Make one with "
            f"`{candidates_command(f'{folder}/')}`"
        )
    newer = [entry for entry in published_increments(storage, folder) if entry > name]
    if newer:
        raise DataError(f"increment {max(newer)} is newer than {name} and was published; older lists do not replace it")
    return name


def start_of_increment(text: str, storage: Storage, candidates: str, folder: str, now: datetime) -> datetime:
    """Return the time from which events count. text: an ISO time, `36h` or `7d` before now, or `last`.

    candidates, folder: keys of the version's candidates and of its increments; `last` is the time of the newest.

    Raises:
        ConfigError: the text is no time, or lies in the future.
    """
    if text == LAST:
        done = [f"{folder}/{name}" for name in storage.folders(folder)]
        keys = [candidates, *(key for key in done if storage.exists(f"{key}/{MANIFEST}"))]
        since = max(_as_of(read_manifest(storage, key), storage.uri(key)) for key in keys)
    else:
        since = _parse_time(text, now)
    if since > now:
        raise ConfigError(f"--since {text} lies in the future: {since:%Y-%m-%d %H:%M} UTC")
    return since


def _as_of(manifest: CandidatesManifest, where: str) -> datetime:
    if manifest.as_of is None:
        raise DataError(f"the candidates at {where} contain no time; give --since a time such as 36h")
    return manifest.as_of


def _parse_time(text: str, now: datetime) -> datetime:
    if ago := re.fullmatch(r"(\d+)([hd])", text):
        return now - timedelta(**{{"h": "hours", "d": "days"}[ago[2]]: int(ago[1])})
    try:
        since = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since takes a time such as 2024-06-01T08:00, 36h or 7d before now, or last; got {text!r}"
        ) from None
    return since.astimezone(UTC) if since.tzinfo else since.replace(tzinfo=UTC)
