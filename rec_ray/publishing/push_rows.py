"""Push of one piece of work to Feast in its own process: frames, lock checks, row counts and version stamps.

Input: a slice of a part, or departed ids. Output: the number of rows that reached the push source, and the failure if
there was one. `push` cuts and distributes the work.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from rec_ray.candidate_store.parts import PartSlice, departed_ids, read_slice
from rec_ray.distributed.worker_cache import get_or_create
from rec_ray.errors import DataError, LockedError, RecRayError
from rec_ray.feature_store.api import FeatureStore, PushMode, RepoConfig
from rec_ray.feature_store.point_in_time import store_in_task
from rec_ray.feature_store.push_targets import Push, push_frame, read_online, tombstone_frame
from rec_ray.logs import LOGGER
from rec_ray.publishing.stale_rows import repair_rows
from rec_ray.schema import MODEL_VERSION
from rec_ray.storage.object_store import Storage
from rec_ray.versions.push_fence import CHECK_SECONDS, Fence, OpenFence

KEEPS_NEWER = ("redis",)
"""Online stores that silently keep a row whose event timestamp is not before that of the push."""
CHECKED = 16
"""With such stores, one row in `CHECKED` is read back after each batch; reading all of them would be slow."""
MODES = {"online": PushMode.ONLINE, "online_and_offline": PushMode.ONLINE_AND_OFFLINE}


@dataclass
class Notes:
    """Notes on a piece of work. unreadable: paths of parts. left_out: number of rows of forgotten ids."""

    unreadable: list[str] = field(default_factory=list)
    left_out: int = 0


def slice_frames(
    storage: Storage, push: Push, notes: Notes, path: str, start: int, stop: int
) -> Iterator[pd.DataFrame]:
    """Return the frames of a slice of a part, without forgotten users and items."""
    for batch in read_slice(storage, PartSlice(path, start, stop), push.batch_rows):
        left = push.erased.without(batch)
        notes.left_out += batch.num_rows - left.num_rows
        if left.num_rows:
            yield push_frame(left, push.target, push.version, push.published_at)


def departed_frames(
    storage: Storage,
    push: Push,
    notes: Notes,
    before: Sequence[str],
    after: Sequence[str],
    bucket: int,
    buckets: int,
) -> Iterator[pd.DataFrame]:
    """Return the empty rows of the ids of one bucket that departed."""
    target = push.target
    ids, paths = departed_ids(storage, list(before), list(after), target.entity, int(bucket), int(buckets))
    notes.unreadable += paths
    for start in range(0, len(ids), push.batch_rows):
        some = ids.slice(start, push.batch_rows)
        yield tombstone_frame(some, target, push.version, push.published_at, push.sizes)


def push_piece(
    store: FeatureStore,
    storage: Storage,
    push: Push,
    fence: Fence | None,
    frames: Callable[..., Iterable[pd.DataFrame]],
    piece: Mapping[str, Any],
) -> dict[str, Any]:
    """Push the frames of a piece and count the rows; a failure is returned together with the count of rows before it.

    The lock is checked around each batch. After its loss, rows written since the last successful check are overwritten
    with those of the publisher that owns it.
    """
    written = _Written(store, storage, push, None if fence is None else get_or_create(fence.token, fence.open))
    notes = Notes()
    failure = ""
    try:
        for frame in frames(storage, push, notes, **piece):
            written.write(frame)
        written.confirm()
    except Exception as error:
        failure = (str(error) if isinstance(error, RecRayError) else f"{type(error).__name__}: {error}")[:500]
        written.repair_if_lost(error)
    return {
        "sent": written.sent,
        "pushed": written.pushed,
        "failure": failure,
        "lost": written.lost,
        "unreadable": "\n".join(notes.unreadable),
        "left_out": notes.left_out,
    }


class _Written:
    """Pushes frames while the lock is held, and keeps the ids of rows until the next successful check of the lock."""

    def __init__(self, store: FeatureStore, storage: Storage, push: Push, fence: OpenFence | None) -> None:
        self.store, self.storage, self.push, self.fence = store, storage, push, fence
        self.sent = self.pushed = 0
        self.lost = False
        self._unconfirmed: list[str] = []

    def write(self, frame: pd.DataFrame) -> None:
        """Push a frame.

        Raises:
            LockedError: another publisher has the lock.
            DataError: the view cannot store the rows, or kept older ones.
        """
        push = self.push
        self.sent += len(frame)
        if frame[list(push.target.fields.values())].isna().all(axis=None):
            raise DataError(
                f"view {push.target.view!r} cannot store an empty list, and Feast drops rows without any value; "
                f"add a field {MODEL_VERSION!r} to the view"
            )
        self.confirm(CHECK_SECONDS)
        self._unconfirmed += frame[push.target.key].astype(str).tolist()
        self.store.push(push.target.source, frame, to=MODES[push.mode])
        _check_stamps(self.store, frame, push)
        self.confirm(CHECK_SECONDS)
        self.pushed += len(frame)

    def confirm(self, seconds: float = 0.0) -> None:
        """Check the lock in the database, unless a check is recent enough and the lock cannot have expired since.

        Raises:
            LockedError: another publisher has the lock.
        """
        if self.fence is not None and self.fence.check(seconds):
            self._unconfirmed.clear()

    def repair_if_lost(self, error: Exception) -> None:
        """After an error, if the lock was lost, overwrite the rows written since the last successful check."""
        self.lost = isinstance(error, LockedError)
        if self.fence is None or not self._unconfirmed:
            return
        try:
            if not self.lost:
                self.confirm()
        except LockedError:
            self.lost = True
        except RecRayError as unknown:
            LOGGER.warning("the publishing lock cannot be checked: %s", unknown)
        if self.lost:
            mode = MODES[self.push.mode]
            repair_rows(
                self.storage,
                self.fence,
                self.push,
                self._unconfirmed,
                lambda frame: self.store.push(self.push.target.source, frame, to=mode),
            )


def _check_stamps(store: FeatureStore, frame: pd.DataFrame, push: Push) -> None:
    """Check one row in `CHECKED` of an online store that may silently keep older rows.

    Raises:
        DataError: the store kept older rows.
    """
    target = push.target
    if str(store.config.online_store.type) not in KEEPS_NEWER or MODEL_VERSION not in target.fields:
        return
    field = target.fields[MODEL_VERSION]
    ids = frame[target.key].iloc[::CHECKED].astype(str).tolist()
    found = read_online(store, target, ids, [field])[field]
    kept = sum(stamp != push.version for stamp in found)
    if kept:
        raise DataError(
            f"view {target.view!r} returns other values than were pushed: it kept {kept:,} of {len(ids):,} rows "
            "with a later event timestamp; a publisher whose clock is ahead wrote them: wait, or remove them"
        )


def push_in_task(
    batch: Mapping[str, Any],
    config: RepoConfig,
    storage: Storage,
    push: Push,
    frames: Callable[..., Iterable[pd.DataFrame]],
    fence: Fence | None,
) -> dict[str, Any]:
    """Run `push_piece` in a Ray task."""
    (piece,) = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    answer = push_piece(store_in_task(config), storage, push, fence, frames, piece)
    get_or_create("modules for pushing", _keep_out_of_collections)
    return {name: [value] for name, value in answer.items()}


def _keep_out_of_collections() -> None:
    """Exclude the objects loaded so far from garbage collection, which would scan them again and again."""
    gc.collect()
    gc.freeze()
