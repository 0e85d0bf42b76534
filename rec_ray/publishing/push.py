"""Stored candidates into Feast: item vectors, then user vectors, then recommendations, through push sources.

Slices of the Parquet parts that a manifest lists go to Ray tasks that push them in small batches, side by side where
the online store can take it; who was there before and is no more gets an empty row; every row is counted and a sample
is read back. It knows nothing of models or of how the candidates were made, and pushes only fields that a view has.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import ray.data

from rec_ray.candidate_store.manifest import search_folder
from rec_ray.candidate_store.parts import PartSlice, StoredCandidates, check_part, departed_ids, read_slice
from rec_ray.config import PublishSettings, SearchSettings
from rec_ray.contracts import UpdateReport
from rec_ray.distributed.parquet_source import submit_at_once
from rec_ray.distributed.worker_cache import get_or_create
from rec_ray.errors import DataError, PartlyPublishedError, RecRayError
from rec_ray.feature_store.api import FeatureStore, PushMode, RepoConfig
from rec_ray.feature_store.point_in_time import portable_config, store_in_task
from rec_ray.feature_store.push_targets import (
    PushTarget,
    as_type_of,
    find_push_target,
    push_frame,
    read_online,
    require_offline_types,
    require_same_space,
    tombstone_frame,
)
from rec_ray.feature_store.search_targets import stored_dimensions, stored_search_targets
from rec_ray.logs import LOGGER
from rec_ray.schema import EMBEDDING, ITEM_ID, ITEM_IDS, MODEL_VERSION, SCORES, SIMILAR_IDS, SIMILAR_SCORES, USER_ID
from rec_ray.storage.object_store import Storage

SINGLE_WRITERS = ("sqlite", "faiss")
"""Online stores that one process at a time may write."""
KEEPS_NEWER = ("redis",)
"""Online stores that leave a row as it is, without a word, when its event timestamp is not before that of the push."""
CHECKED = 16
"""With those, one in so many rows is read back at once: all of them would take a third of the time of a push."""
SAMPLE = 20
"""Rows of a folder that are read back."""
SLICE_ROWS = 20_000
"""Rows of one task; a few times the batches that it pushes, so that starting it costs little."""
IDS_AT_A_TIME = 1_000_000
"""Ids that one process holds while it looks for those that left."""
MODES = {"online": PushMode.ONLINE, "online_and_offline": PushMode.ONLINE_AND_OFFLINE}


@dataclass(frozen=True)
class Push:
    """What all rows of one push source have in common. sizes: numbers of each vector, by our column."""

    target: PushTarget
    version: str
    published_at: datetime
    batch_rows: int
    mode: str
    sizes: Mapping[str, int]


def find_push_targets(store: FeatureStore, settings: PublishSettings) -> dict[str, PushTarget]:
    """Return the target of each folder of candidates, in the order in which they are pushed.

    Raises:
        ConfigError, SchemaError: a push source is missing, or its view does not fit.
    """
    lists, similar = [ITEM_IDS, SCORES], settings.similar_push_source
    items = {"item_embeddings": find_push_target(store, settings.item_push_source, ITEM_ID, [EMBEDDING])}
    if similar is not None:
        items["similar_items"] = find_push_target(store, similar, ITEM_ID, [SIMILAR_IDS, SIMILAR_SCORES])
    return items | {
        "user_embeddings": find_push_target(store, settings.user_push_source, USER_ID, [EMBEDDING]),
        "recommendations": find_push_target(store, settings.recommendation_push_source, USER_ID, lists),
    }


def check_push_targets(
    store: FeatureStore, settings: PublishSettings, similarity: str, embedding_size: int
) -> dict[str, PushTarget]:
    """Find the targets and check that vectors of a model belong there.

    Raises:
        ConfigError, SchemaError: as `find_push_targets`, or the view searches by another metric or length.
    """
    targets = find_push_targets(store, settings)
    for target in targets.values():
        if EMBEDDING in target.fields:
            require_same_space(target, similarity, embedding_size)
    return targets


def update_feature_store(
    store: FeatureStore,
    storage: Storage,
    candidates: StoredCandidates,
    settings: PublishSettings,
    *,
    published_at: datetime,
    before: Sequence[StoredCandidates] = (),
    search: SearchSettings | None = None,
    check: Callable[[], None] = lambda: None,
) -> UpdateReport:
    """Push candidates: order items, similar items, search vectors, users, lists; those that left get an empty row.

    Of an increment, whose manifest lists no items, only users and their lists are pushed.

    published_at: event timestamp of all rows; later than that of any push before.
    before: candidates of which the online store may hold rows; who is in them and not in `candidates` has left.
    search: which search views must be there.
    check: called now and then; raises when this process may not go on.

    Raises:
        PartlyPublishedError: a push failed, fewer rows arrived than were sent, or a sample reads back differently.
        ConfigError, SchemaError: a push source or its view does not fit; nothing was pushed then.
        DataError: a part is missing or was changed; nothing was pushed then.
    """
    manifest, version = candidates.manifest, candidates.version
    size = int(manifest.get("embedding_size", 0))
    targets = check_push_targets(store, settings, str(manifest.get("similarity", "cosine")), size) if size else None
    targets = _wanted(targets or find_push_targets(store, settings), candidates)
    sizes: dict[str, Mapping[str, int]] = {folder: {EMBEDDING: size} for folder in targets}
    if not manifest.get("is_increment"):
        searched = stored_search_targets(store, search or SearchSettings(), manifest)
        sizes |= {search_folder(source): fields for source, fields in stored_dimensions(manifest).items()}
        targets = {name: target for name, target in targets.items() if target.entity == ITEM_ID} | searched | targets
    if settings.push_mode != "online":
        for target in targets.values():
            require_offline_types(target)
    kind = str(store.config.online_store.type)
    writers = 1 if kind in SINGLE_WRITERS else max(1, int(ray.cluster_resources().get("CPU", 1)))
    _check_parts(storage, candidates, list(targets), check)
    rows: dict[str, int] = {}
    departed: dict[str, int] = {}
    for folder, target in targets.items():
        push = Push(target, version, published_at, settings.batch_rows, settings.push_mode, sizes[folder])
        writer = _Writer(store, storage, push, writers, check)
        expected = candidates.rows(folder)
        rows[target.source] = writer.push_slices(candidates.slices(storage, folder, SLICE_ROWS), expected)
        departed[target.source] = writer.push_departed(candidates, before, folder)
        _read_back(store, storage, candidates.paths(storage, folder), target, version)
    return UpdateReport(version, rows, departed)


def _wanted(targets: Mapping[str, PushTarget], candidates: StoredCandidates) -> dict[str, PushTarget]:
    """Leave out what the candidates need not have: the items of an increment, and lists of similar items."""
    optional = {"item_embeddings", "similar_items"} if candidates.manifest.get("is_increment") else {"similar_items"}
    missing = optional - set(candidates.manifest["parts"])
    if "similar_items" in missing & set(targets) and not candidates.manifest.get("is_increment"):
        LOGGER.warning(
            "version %s has no similar items to push to %s; set candidates.similar_items and run `rec-ray candidates`",
            candidates.version,
            targets["similar_items"].source,
        )
    return {folder: target for folder, target in targets.items() if folder not in missing}


def _check_parts(
    storage: Storage, candidates: StoredCandidates, folders: Sequence[str], check: Callable[[], None]
) -> None:
    """Compare all parts with their sums, before anything is pushed."""
    parts = [
        (f"{candidates.prefix}/{folder}/{part['name']}", part)
        for folder in folders
        for part in candidates.parts(folder)
    ]
    for key, part in parts:
        check_part(storage, key, part)
    check()


class _Writer:
    """Pushes the rows of one source, in this process or in tasks of Ray, and counts them."""

    def __init__(
        self, store: FeatureStore, storage: Storage, push: Push, writers: int, check: Callable[[], None]
    ) -> None:
        self.store, self.storage, self.push, self.writers, self.check = store, storage, push, writers, check

    def push_slices(self, slices: Sequence[PartSlice], expected: int) -> int:
        """Push all rows and return how many arrived.

        Raises:
            PartlyPublishedError: not all of them.
        """
        # No more than what keeps all writers busy to the end: small tasks where there are few rows.
        work = [{"path": piece.path, "start": piece.start, "stop": piece.stop} for piece in slices]
        if self.writers > 1 and len(work) < 4 * self.writers and expected:
            work = _cut(work, _piece_rows(expected, self.writers, self.push.batch_rows))
        return self._run(work, _slice_frames, expected)

    def push_departed(self, after: StoredCandidates, before: Sequence[StoredCandidates], folder: str) -> int:
        """Push an empty row for everybody that only earlier candidates have; return how many there are."""
        others = [
            each
            for each in before
            if (each.version, each.prefix) != (after.version, after.prefix) and folder in each.manifest["parts"]
        ]
        if not others:
            return 0
        ids = after.rows(folder) + sum(each.rows(folder) for each in others)
        buckets = max(1, math.ceil(ids / IDS_AT_A_TIME))
        old = [path for each in others for path in each.paths(self.storage, folder)]
        new = after.paths(self.storage, folder)
        work = [{"before": old, "after": new, "bucket": number, "buckets": buckets} for number in range(buckets)]
        return self._run(work, _departed_frames, None)

    def _run(
        self, work: list[dict[str, Any]], frames: Callable[..., Iterable[pd.DataFrame]], expected: int | None
    ) -> int:
        source = self.push.target.source
        sent = pushed = 0
        failure = ""
        # Closing: what is not done yet is given up when one piece failed.
        with contextlib.closing(self._answers(work, frames)) as answers:
            for answer in answers:
                sent, pushed, failure = sent + answer["sent"], pushed + answer["pushed"], failure or answer["failure"]
                if failure:
                    break
                self.check()
        wanted = sent if expected is None else expected
        if failure or pushed != wanted:
            why = failure or "the counts differ"
            raise PartlyPublishedError(
                f"{pushed:,} of {max(wanted, sent):,} rows reached {source!r}: {why}. The live version is unchanged; "
                f"run `rec-ray publish {self.push.version}` again"
            )
        return pushed

    def _answers(
        self, work: list[dict[str, Any]], frames: Callable[..., Iterable[pd.DataFrame]]
    ) -> Generator[dict[str, Any]]:
        """Give what became of each piece of work; a store for one writer is written by this process."""
        if self.writers == 1 or not work:
            for piece in work:
                yield _push_piece(self.store, self.storage, self.push, frames(self.storage, self.push, **piece))
            return
        arguments = {
            "config": portable_config(self.store),
            "storage": self.storage,
            "push": self.push,
            "frames": frames,
        }
        pieces = submit_at_once(ray.data.from_items(work, override_num_blocks=len(work)))
        done = pieces.map_batches(
            _push_in_task,
            batch_size=1,
            fn_kwargs=arguments,
        )
        yield from done.iter_rows()


def _piece_rows(rows: int, writers: int, batch_rows: int) -> int:
    """Return the rows of a piece: as many whole batches for every writer, and no more than about four pieces each.

    A push takes as long for a part of a batch as for all of it where the store is far away.
    """
    batches = math.ceil(rows / (writers * batch_rows))
    return math.ceil(rows / (writers * batches)) if batches <= 4 else math.ceil(batches / 4) * batch_rows


def _cut(work: list[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    return [
        {**piece, "start": start, "stop": min(start + rows, piece["stop"])}
        for piece in work
        for start in range(piece["start"], piece["stop"], rows)
    ]


def _slice_frames(storage: Storage, push: Push, path: str, start: int, stop: int) -> Iterator[pd.DataFrame]:
    for batch in read_slice(storage, PartSlice(path, start, stop), push.batch_rows):
        yield push_frame(batch, push.target, push.version, push.published_at)


def _departed_frames(
    storage: Storage, push: Push, before: Sequence[str], after: Sequence[str], bucket: int, buckets: int
) -> Iterator[pd.DataFrame]:
    target = push.target
    ids = departed_ids(storage, list(before), list(after), target.entity, int(bucket), int(buckets))
    for start in range(0, len(ids), push.batch_rows):
        some = ids.slice(start, push.batch_rows)
        yield tombstone_frame(some, target, push.version, push.published_at, push.sizes)


def _push_piece(store: FeatureStore, storage: Storage, push: Push, frames: Iterable[pd.DataFrame]) -> dict[str, Any]:
    """Push some frames and count the rows; a failure is an answer too, so that the rows before it are counted."""
    sent = pushed = 0
    try:
        for frame in frames:
            sent += len(frame)
            if frame[list(push.target.fields.values())].isna().all(axis=None):
                raise DataError(
                    f"view {push.target.view!r} can hold no empty list, and Feast leaves rows without any value out; "
                    f"give the view a field {MODEL_VERSION!r}"
                )
            store.push(push.target.source, frame, to=MODES[push.mode])
            _check_stamps(store, frame, push)
            pushed += len(frame)
    except Exception as error:
        text = str(error) if isinstance(error, RecRayError) else f"{type(error).__name__}: {error}"
        return {"sent": sent, "pushed": pushed, "failure": text[:500]}
    return {"sent": sent, "pushed": pushed, "failure": ""}


def _check_stamps(store: FeatureStore, frame: pd.DataFrame, push: Push) -> None:
    """Find out whether the online store took the rows, where it may silently keep others: one in `CHECKED`.

    Raises:
        DataError: it did not.
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
            f"view {target.view!r} answers otherwise than was pushed: it kept {kept:,} of {len(ids):,} rows "
            "that say they are of a later time; a publisher whose clock is ahead wrote them: wait, or remove them"
        )


def _push_in_task(
    batch: Mapping[str, Any],
    config: RepoConfig,
    storage: Storage,
    push: Push,
    frames: Callable[..., Iterable[pd.DataFrame]],
) -> dict[str, Any]:
    (piece,) = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    answer = _push_piece(store_in_task(config), storage, push, frames(storage, push, **piece))
    get_or_create("modules for pushing", _keep_out_of_collections)
    return {name: [value] for name, value in answer.items()}


def _keep_out_of_collections() -> None:
    """Leave what a process has loaded out of Python's collections, which took a twentieth of its time."""
    gc.collect()
    gc.freeze()


def _read_back(store: FeatureStore, storage: Storage, paths: list[str], target: PushTarget, version: str) -> None:
    """Compare a sample of what was pushed with what the online store answers: the first rows of some parts."""
    some = [paths[place] for place in sorted({0, len(paths) // 2, len(paths) - 1})] if paths else []
    for path in some:
        batches = read_slice(storage, PartSlice(path, 0, SAMPLE), SAMPLE)
        for sample in itertools.islice(batches, 1):
            _compare(store, sample, target, version)


def _compare(store: FeatureStore, sample: pa.Table, target: PushTarget, version: str) -> None:
    columns = list(target.vectors) or [next(column for column in target.fields if column != MODEL_VERSION)]
    found = read_online(store, target, sample[target.entity].to_pylist())
    stamps = found[target.fields[MODEL_VERSION]] if MODEL_VERSION in target.fields else [version] * sample.num_rows
    for column in columns:
        pushed = as_type_of(target, target.fields[column], sample[column]).to_pylist()
        for expected, answer, stamp in zip(pushed, found[target.fields[column]], stamps, strict=True):
            if stamp != version or not _same(expected, answer, as_ids=column in (ITEM_IDS, SIMILAR_IDS)):
                raise PartlyPublishedError(
                    f"view {target.view!r} answers otherwise than was pushed for version {version}; is another "
                    "publisher writing to the same online store, or one whose clock is ahead? Run `rec-ray publish` "
                    "again"
                )


def _same(expected: list[Any] | None, answer: list[Any] | None, *, as_ids: bool) -> bool:
    """Compare two lists; an empty list of numbers may be null (`push_targets.PushTarget.keeps_empty_numbers`)."""
    if not expected or not answer:
        return not expected and not answer
    if len(expected) != len(answer):
        return False
    return list(answer) == expected if as_ids else bool(np.allclose(answer, expected, rtol=1e-5, atol=1e-6))
