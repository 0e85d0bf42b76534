"""Push of stored candidates to Feast: item vectors, then user vectors, then recommendations, through push sources.

Ray tasks push slices of the Parquet parts of a manifest in small batches, concurrently if the online store supports it.
Departed users and items get an empty row, every row is counted, and a sample is read back. The module does not use the
model, and pushes only fields that a view has.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import ray.data

from rec_ray.candidate_store.erasure import Erased
from rec_ray.candidate_store.manifest import search_folder
from rec_ray.candidate_store.parts import PartSlice, StoredCandidates, check_part, read_slice, readable_paths
from rec_ray.config import PublishSettings, SearchSettings
from rec_ray.contracts import UpdateReport
from rec_ray.distributed.parquet_source import submit_at_once
from rec_ray.errors import DataError, LockedError, PartlyPublishedError, list_names
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.point_in_time import portable_config
from rec_ray.feature_store.push_targets import (
    Push,
    PushTarget,
    as_type_of,
    find_push_target,
    read_online,
    require_offline_types,
    require_same_space,
)
from rec_ray.feature_store.search_targets import stored_dimensions, stored_search_targets
from rec_ray.logs import LOGGER
from rec_ray.publishing.push_rows import departed_frames, push_in_task, push_piece, slice_frames
from rec_ray.schema import EMBEDDING, ITEM_ID, ITEM_IDS, MODEL_VERSION, SCORES, SIMILAR_IDS, SIMILAR_SCORES, USER_ID
from rec_ray.storage.object_store import Storage
from rec_ray.versions.push_fence import Fence

SINGLE_WRITERS = ("sqlite", "faiss")
"""Online stores that only one process at a time may write."""
SAMPLE = 20
"""Rows per folder that are read back as a check."""
SLICE_ROWS = 20_000
"""Rows per task: several batches, so that the cost of starting a task is small."""
IDS_AT_A_TIME = 1_000_000
"""Ids that one process keeps in memory while it searches for departed ones."""


def wanted_targets(settings: PublishSettings) -> dict[str, tuple[str, str, list[str]]]:
    """Return the push source, the entity and the columns of each folder of candidates, in the order of the pushes."""
    wanted = {
        "item_embeddings": (settings.item_push_source, ITEM_ID, [EMBEDDING]),
        "similar_items": (settings.similar_push_source, ITEM_ID, [SIMILAR_IDS, SIMILAR_SCORES]),
        "user_embeddings": (settings.user_push_source, USER_ID, [EMBEDDING]),
        "recommendations": (settings.recommendation_push_source, USER_ID, [ITEM_IDS, SCORES]),
    }
    return {folder: (source, entity, columns) for folder, (source, entity, columns) in wanted.items() if source}


def find_push_targets(store: FeatureStore, settings: PublishSettings) -> dict[str, PushTarget]:
    """Return the target of each folder of candidates, in the order in which they are pushed.

    Raises:
        ConfigError, SchemaError: a push source is missing, or its view does not fit.
    """
    return {folder: find_push_target(store, *wanted) for folder, wanted in wanted_targets(settings).items()}


def check_push_targets(
    store: FeatureStore, settings: PublishSettings, similarity: str, embedding_size: int
) -> dict[str, PushTarget]:
    """Find the targets and check that they accept the vectors of a model.

    Raises:
        ConfigError, SchemaError: as `find_push_targets`, or the view has another metric or vector length.
    """
    return {
        folder: check_push_target(store, wanted, similarity, embedding_size)
        for folder, wanted in wanted_targets(settings).items()
    }


def check_push_target(
    store: FeatureStore, wanted: tuple[str, str, list[str]], similarity: str, embedding_size: int
) -> PushTarget:
    """Find one of the targets. wanted: of `wanted_targets`. Raises: as `check_push_targets`."""
    target = find_push_target(store, *wanted)
    if EMBEDDING in target.fields:
        require_same_space(target, similarity, embedding_size)
    return target


@dataclass(frozen=True)
class PushLock:
    """The publishing lock as a push uses it.

    begin_push: returns the event timestamp of all rows, later than that of every earlier push; called after all checks,
    just before the first row. check: called between pieces of work; raises if this process may not continue. fence: the
    lock as the pushing processes check it; None in a push without a lock.
    """

    begin_push: Callable[[], datetime]
    check: Callable[[], None] = lambda: None
    fence: Fence | None = None


def update_feature_store(
    store: FeatureStore,
    storage: Storage,
    candidates: StoredCandidates,
    settings: PublishSettings,
    lock: PushLock,
    *,
    before: Sequence[StoredCandidates] = (),
    search: SearchSettings | None = None,
    erased: Erased | None = None,
) -> UpdateReport:
    """Push candidates in the order items, similar items, search vectors, users, lists; departed ids get an empty row.

    An increment, whose manifest lists no items, pushes only users and their lists.

    before: candidates that may have rows in the online store; ids in them that `candidates` lacks have departed.
        Unreadable parts are counted in a warning, because a damaged version must not block the publication of others.
    search: search views that must exist.
    erased: forgotten users and items; their rows are left out and counted.

    Raises:
        PartlyPublishedError: a push failed, fewer rows arrived than were sent, or a sample reads back differently.
        ConfigError, SchemaError: a push source or its view does not fit; nothing was pushed.
        DataError: a part is missing or was changed; nothing was pushed.
        LockedError: another publisher took the lock over.
    """
    manifest, version = candidates.manifest, candidates.version
    size = manifest.embedding_size
    targets = check_push_targets(store, settings, manifest.similarity, size) if size else None
    targets = _wanted(targets or find_push_targets(store, settings), candidates)
    sizes: dict[str, Mapping[str, int]] = {folder: {EMBEDDING: size} for folder in targets}
    if not manifest.is_increment:
        searched = stored_search_targets(store, search or SearchSettings(), manifest)
        sizes |= {search_folder(source): fields for source, fields in stored_dimensions(manifest).items()}
        targets = {name: target for name, target in targets.items() if target.entity == ITEM_ID} | searched | targets
    if settings.push_mode != "online":
        for target in targets.values():
            require_offline_types(target)
    kind = str(store.config.online_store.type)
    writers = 1 if kind in SINGLE_WRITERS else max(1, int(ray.cluster_resources().get("CPU", 1)))
    _check_parts(storage, candidates, list(targets), lock.check)
    published_at = lock.begin_push()
    rows: dict[str, int] = {}
    departed: dict[str, int] = {}
    for folder, target in targets.items():
        push = Push(
            target,
            version,
            published_at,
            settings.batch_rows,
            settings.push_mode,
            sizes[folder],
            folder,
            erased or Erased(),
        )
        writer = _Writer(store, storage, push, writers, lock.check, lock.fence)
        expected = candidates.rows(folder)
        rows[target.source] = writer.push_slices(candidates.slices(storage, folder, SLICE_ROWS), expected)
        departed[target.source] = writer.push_departed(candidates, before, folder)
        check_pushed_sample(store, storage, candidates.paths(storage, folder), target, version, erased or Erased())
    return UpdateReport(version, rows, departed)


def _wanted(targets: Mapping[str, PushTarget], candidates: StoredCandidates) -> dict[str, PushTarget]:
    """Leave out targets of optional folders: the items of an increment, and lists of similar items."""
    optional = {"item_embeddings", "similar_items"} if candidates.manifest.is_increment else {"similar_items"}
    missing = optional - set(candidates.manifest.parts)
    if "similar_items" in missing & set(targets) and not candidates.manifest.is_increment:
        LOGGER.warning(
            "version %s has no similar items to push to %s; set candidates.similar_items and run `rec-ray candidates`",
            candidates.version,
            targets["similar_items"].source,
        )
    return {folder: target for folder, target in targets.items() if folder not in missing}


def _check_parts(
    storage: Storage, candidates: StoredCandidates, folders: Sequence[str], check: Callable[[], None]
) -> None:
    """Compare all parts with their sums and row counts before the first push."""
    parts = [
        (f"{candidates.prefix}/{folder}/{part.name}", part) for folder in folders for part in candidates.parts(folder)
    ]
    for key, part in parts:
        check_part(storage, key, part)
    for folder in ("item_embeddings", "user_embeddings"):
        if folder in folders and candidates.manifest.embedding_size:
            _check_lengths(storage, candidates, folder)
    check()


def _check_lengths(storage: Storage, candidates: StoredCandidates, folder: str) -> None:
    """Compare the length of the first vector with the manifest."""
    expected = candidates.manifest.embedding_size
    for piece in candidates.slices(storage, folder, 1)[:1]:
        for batch in read_slice(storage, piece, 1):
            found = len(batch[EMBEDDING][0].as_py())
            if found != expected:
                raise DataError(
                    f"candidates are damaged: vectors in {piece.path} have {found} numbers, the manifest has "
                    f"embedding_size {expected}; run `rec-ray candidates VERSION` again"
                )


class _Writer:
    """Pushes and counts the rows of one source, in this process or in Ray tasks."""

    def __init__(
        self,
        store: FeatureStore,
        storage: Storage,
        push: Push,
        writers: int,
        check: Callable[[], None],
        fence: Fence | None,
    ) -> None:
        self.store, self.storage, self.push, self.writers, self.check = store, storage, push, writers, check
        self.fence = fence

    def push_slices(self, slices: Sequence[PartSlice], expected: int) -> int:
        """Push all rows and return the number that arrived.

        Raises:
            PartlyPublishedError: not all of them arrived.
        """
        # With few rows use smaller tasks, so that all writers stay busy to the end.
        work = [{"path": piece.path, "start": piece.start, "stop": piece.stop} for piece in slices]
        if self.writers > 1 and len(work) < 4 * self.writers and expected:
            work = _cut(work, rows_per_piece(expected, self.writers, self.push.batch_rows))
        return self._run(work, slice_frames, expected)

    def push_departed(self, after: StoredCandidates, before: Sequence[StoredCandidates], folder: str) -> int:
        """Push an empty row for every id that only earlier candidates have; return the number of rows."""
        others = [
            each
            for each in before
            if (each.version, each.prefix) != (after.version, after.prefix) and folder in each.manifest.parts
        ]
        readable = [readable_paths(self.storage, each, folder)[0] for each in others]
        old = [path for paths in readable for path in paths]
        if not old:
            return 0
        ids = after.rows(folder) + sum(each.rows(folder) for each in others)
        buckets = max(1, math.ceil(ids / IDS_AT_A_TIME))
        new = after.paths(self.storage, folder)
        work = [{"before": old, "after": new, "bucket": number, "buckets": buckets} for number in range(buckets)]
        return self._run(work, departed_frames, None)

    def _run(
        self, work: list[dict[str, Any]], frames: Callable[..., Iterable[pd.DataFrame]], expected: int | None
    ) -> int:
        source = self.push.target.source
        sent = pushed = 0
        left_out, failure, lost, unreadable = 0, "", False, set[str]()
        # Closing the iterator cancels the remaining pieces after a failure.
        with contextlib.closing(self._answers(work, frames)) as answers:
            for answer in answers:
                sent, pushed, failure = sent + answer["sent"], pushed + answer["pushed"], failure or answer["failure"]
                lost = lost or bool(answer["lost"])
                left_out += answer["left_out"]
                unreadable |= set(answer["unreadable"].split("\n")) - {""}
                if failure:
                    break
                self.check()
        if unreadable:
            LOGGER.warning("ids of %d damaged parts are unknown: %s", len(unreadable), list_names(sorted(unreadable)))
        if lost:
            raise LockedError(f"{pushed:,} rows reached {source!r}: {failure}")
        if left_out:
            LOGGER.info("%s rows of forgotten users or items are not pushed to %s", f"{left_out:,}", source)
        wanted = sent if expected is None else expected - left_out
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
        """Yield the outcome of each piece of work; this process itself writes to a store that allows one writer."""
        if self.writers == 1 or not work:
            for piece in work:
                yield push_piece(self.store, self.storage, self.push, self.fence, frames, piece)
            return
        arguments = {
            "config": portable_config(self.store),
            "storage": self.storage,
            "push": self.push,
            "frames": frames,
            "fence": self.fence,
        }
        pieces = submit_at_once(ray.data.from_items(work, override_num_blocks=len(work)))
        done = pieces.map_batches(
            push_in_task,
            batch_size=1,
            fn_kwargs=arguments,
        )
        yield from done.iter_rows()


def rows_per_piece(rows: int, writers: int, batch_rows: int) -> int:
    """Return the rows of a piece: complete batches, evenly divided among writers, at most about four pieces each.

    With a remote store, pushing a part of a batch takes as long as pushing all of it.
    """
    batches = math.ceil(rows / (writers * batch_rows))
    return math.ceil(rows / (writers * batches)) if batches <= 4 else math.ceil(batches / 4) * batch_rows


def _cut(work: list[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    return [
        {**piece, "start": start, "stop": min(start + rows, piece["stop"])}
        for piece in work
        for start in range(piece["start"], piece["stop"], rows)
    ]


def check_pushed_sample(
    store: FeatureStore,
    storage: Storage,
    paths: list[str],
    target: PushTarget,
    version: str,
    erased: Erased | None = None,
) -> None:
    """Compare a sample of the pushed rows, the first rows of some parts, with those in the online store."""
    some = [paths[place] for place in sorted({0, len(paths) // 2, len(paths) - 1})] if paths else []
    for path in some:
        batches = read_slice(storage, PartSlice(path, 0, SAMPLE), SAMPLE)
        for sample in itertools.islice(batches, 1):
            left = sample if erased is None else erased.without(sample)
            if left.num_rows:
                _compare(store, left, target, version)


def _compare(store: FeatureStore, sample: pa.Table, target: PushTarget, version: str) -> None:
    columns = list(target.vectors) or [next(column for column in target.fields if column != MODEL_VERSION)]
    found = read_online(store, target, sample[target.entity].to_pylist())
    stamps = found[target.fields[MODEL_VERSION]] if MODEL_VERSION in target.fields else [version] * sample.num_rows
    for column in columns:
        pushed = as_type_of(target, target.fields[column], sample[column]).to_pylist()
        for expected, answer, stamp in zip(pushed, found[target.fields[column]], stamps, strict=True):
            if stamp != version or not _same(expected, answer, as_ids=column in (ITEM_IDS, SIMILAR_IDS)):
                raise PartlyPublishedError(
                    f"view {target.view!r} returns other values than were pushed for version {version}; is another "
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
