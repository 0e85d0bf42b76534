"""Encoded timelines of users, and the padded batches that the user tower reads.

Input: an Arrow table with one row per user (`TIMELINES`). `training_windows` cuts it into stretches whose positives are
each predicted once; `query_batch` takes the newest events before a point of evaluation. The module uses item indices
and labels only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rec_ray.retrieval.features.batch import FeatureBatch, FeatureShape
from rec_ray.retrieval.ragged import ragged_positions

Array = npt.NDArray[Any]

TIMELINES = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_index", pa.list_(pa.int32())),
        pa.field("event_type", pa.list_(pa.int32())),
        pa.field("event_seconds", pa.list_(pa.int64())),
        pa.field("weight", pa.list_(pa.float32())),
        pa.field("split", pa.list_(pa.int8())),
        pa.field("feature_row", pa.list_(pa.int32())),
        pa.field("user_numeric", pa.list_(pa.float32())),
        pa.field("user_tokens", pa.list_(pa.int32())),
        pa.field("user_token_counts", pa.list_(pa.int32())),
        pa.field("user_vector", pa.list_(pa.float32())),
    ]
)
"""One row per user; lists have one entry for each of the user's n events in the order of time, unless stated otherwise.

item_index: index in the catalogue, from 1. event_type: 0 is unknown. event_seconds: since 1970. weight: of the event as
a positive; 0: a negative, by its type or value; below 0: a positive that is history only, because its user has enough
newer ones. split: `TRAIN`, `VALIDATION` or `TEST`.
feature_row: n + 3 indices of the user's own feature rows: as of each event, as of the validation, the test and now.
user_*: the user's distinct feature rows, flat.
"""

COLD_USERS = 10
"""One in so many users keeps its position with an empty history for training. Without user features these positions are
identical, and in short sessions they would be a third of all positions and teach only popularity."""

QUERIES = 3
"""Number of feature rows after those of the events: as of the validation, as of the test, and now."""


@dataclass(frozen=True)
class Timelines:
    """Timelines of `u` users as flat arrays.

    first: [u + 1] int64, offset of each user's events in the arrays over events. row_first: [u + 1], offset of each
    user's distinct feature rows in `user_features`. feature_row: [E + 3 u], indices into `user_features`.
    """

    user_ids: pa.Array
    first: Array
    item_index: Array
    event_type: Array
    event_seconds: Array
    weight: Array
    split: Array
    feature_row: Array
    user_features: FeatureBatch

    def __len__(self) -> int:
        """Number of users."""
        return len(self.first) - 1

    @property
    def users_are_alike(self) -> bool:
        """True if users have no features."""
        features = self.user_features
        return not (features.numeric.shape[1] or features.token_counts.shape[1] or features.vector.shape[1])

    @classmethod
    def from_table(cls, table: pa.Table, user_shape: FeatureShape) -> Timelines:
        """Build it from a table of `TIMELINES`."""
        table = table.combine_chunks()
        first, item_index = _flat(table, "item_index")
        counts = np.diff(first)
        numeric = _flat(table, "user_numeric")[1]
        token_counts = _flat(table, "user_token_counts")[1]
        vector = _flat(table, "user_vector")[1]
        row_of = _flat(table, "feature_row")[1].astype(np.int64)
        # Each user numbers its rows from 0: add their offset.
        own = np.repeat(np.arange(len(counts)), counts + QUERIES)
        ends = np.cumsum(counts + QUERIES)
        rows = np.maximum.reduceat(row_of, ends - counts - QUERIES) + 1 if len(counts) else np.zeros(0, np.int64)
        row_first = np.concatenate([[0], np.cumsum(rows)])
        total = int(row_first[-1])
        return cls(
            user_ids=table["user_id"].combine_chunks(),
            first=first,
            item_index=item_index,
            event_type=_flat(table, "event_type")[1],
            event_seconds=_flat(table, "event_seconds")[1],
            weight=_flat(table, "weight")[1],
            split=_flat(table, "split")[1],
            feature_row=row_of + row_first[own],
            user_features=FeatureBatch.from_numpy(
                numeric.reshape(total, user_shape.numeric),
                _flat(table, "user_tokens")[1],
                token_counts.reshape(total, user_shape.fields),
                vector.reshape(total, user_shape.vector),
            ),
        )

    def query_row(self, query: int) -> Array:
        """Return [u] int64: the feature row of each user as of the validation (0), the test (1) or now (2)."""
        ends = self.first[1:] + QUERIES * np.arange(1, len(self.first))
        return self.feature_row[ends - QUERIES + query]

    def events_before(self, split: int) -> tuple[Array, Array]:
        """Return the offset of each user's events and the number of those before label `split`, [u] each."""
        user = np.repeat(np.arange(len(self)), np.diff(self.first))
        counts = np.bincount(user[self.split < split], minlength=len(self))
        return self.first[:-1], counts

    def positives(self, split: int) -> tuple[Array, Array]:
        """Return the positives labelled `split`: [T] item index and [u + 1] offset of each user."""
        chosen = (self.split == split) & (self.weight > 0)
        user = np.repeat(np.arange(len(self)), np.diff(self.first))
        counts = np.bincount(user[chosen], minlength=len(self))
        return self.item_index[chosen], np.concatenate([[0], np.cumsum(counts)])


@dataclass
class TimelineInputs:
    """Inputs of the user tower: padded stretches of `b` timelines, with at most `L` events; padding has item index 0.

    item_index, event_type: [b, L] int64. gap_seconds: [b, L] float32, since the event before. length: [b] int64.
    user_features: rows of user features; feature_row: [b, L + 1] int64, the row as of each position.
    """

    item_index: Tensor
    event_type: Tensor
    gap_seconds: Tensor
    length: Tensor
    user_features: FeatureBatch
    feature_row: Tensor


@dataclass
class TimelineBatch(TimelineInputs):
    """Stretches of timelines with the targets of a training step.

    target, weight: [b, L + 1] int64 and float32: the item after position t and its weight (0: no target).
    negative: [b, L + 1] int64: the item after position t if it is a negative, else 0.
    """

    target: Tensor
    weight: Tensor
    negative: Tensor

    def explicit_negatives(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Pair each positive with the negatives of other items in the same stretch.

        place: [b, L + 1] bool, mask of the positives. Return the items and the rows of the positives, both [e].
        """
        disliked = self.negative > 0
        of_timeline = disliked.sum(1)
        first = of_timeline.cumsum(0) - of_timeline
        timeline = place.nonzero()[:, 0]
        counts = of_timeline[timeline]
        row = torch.repeat_interleave(torch.arange(len(timeline), device=place.device), counts)
        within = torch.arange(len(row), device=place.device) - (counts.cumsum(0) - counts)[row]
        items = self.negative[disliked][first[timeline][row] + within]
        different = items != self.target[place][row]
        return items[different], row[different]

    def pin_memory(self) -> TimelineBatch:
        """Return the same batch in page-locked memory."""
        return TimelineBatch(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})

    def to(self, device: torch.device | str) -> TimelineBatch:
        """Return the same batch on `device`."""
        return TimelineBatch(
            **{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        )


@dataclass(frozen=True)
class Windows:
    """Stretches of timelines: events [start, start + events) of the flat arrays.

    All arrays are [w] int64. user: index of the timeline. stale: number of first events that are context only, because
    the previous stretch predicts them.
    """

    user: Array
    start: Array
    events: Array
    stale: Array

    def __len__(self) -> int:
        """Number of stretches."""
        return len(self.user)


def training_windows(timelines: Timelines, history_length: int, below_split: int) -> Windows:
    """Cut timelines into stretches so that each event is predicted once, from up to `history_length` events before it.

    A stretch has one more event, the last of which is only predicted, so that training histories are as long as those
    of queries. A longer timeline gives several stretches, each half new and half context. Only events with a label
    below `below_split` are used; stretches without a positive are left out. Without user features the first event of a
    timeline is context only, except for one user in `COLD_USERS`.
    """
    first, counts = timelines.events_before(below_split)
    most = history_length + 1
    stride = max(1, history_length // 2)
    further = np.maximum(0, -(-(counts - most) // stride))
    pieces = np.where(counts > 0, 1 + further, 0)
    user = np.repeat(np.arange(len(timelines)), pieces)
    piece = ragged_positions(np.zeros(len(pieces), np.int64), pieces)
    # The last stretch ends with the timeline; each other one ends a stride after its predecessor.
    end = np.where(piece == pieces[user] - 1, counts[user], most + piece * stride)
    before = np.where(piece == 0, 0, most + (piece - 1) * stride)
    begin = np.maximum(0, end - most)
    stale = np.maximum(0, before - begin)
    if timelines.users_are_alike:
        stale = np.where((begin == 0) & (user % COLD_USERS != 0), np.maximum(stale, 1), stale)
    windows = Windows(user, first[user] + begin, end - begin, stale)
    positive = np.concatenate([[0], np.cumsum(timelines.weight > 0)])
    useful = positive[windows.start + windows.events] > positive[windows.start + windows.stale]
    return Windows(windows.user[useful], windows.start[useful], windows.events[useful], windows.stale[useful])


def training_batch(
    timelines: Timelines,
    windows: Windows,
    chosen: Array,
    *,
    ahead: int = 1,
    generator: np.random.Generator | None = None,
) -> TimelineBatch:
    """Pad the chosen stretches into one batch: L is the longest length minus one, as the last event is only predicted.

    chosen: [b] int64 indices of `windows`.
    ahead: a positive is replaced by a random one of the next `ahead` events of its stretch, if that is a positive too
        (the all-action objective of PinnerFormer, Pancha et al. 2022). 1 predicts the next event.
    generator: source of these draws; required if `ahead` is above 1.
    """
    start, events = windows.start[chosen], windows.events[chosen]
    user = windows.user[chosen]
    width = int(events.max()) - 1
    item_index, mask = _padded(timelines.item_index, start, events, width + 1)
    weight = _padded(timelines.weight, start, events, width + 1)[0]
    fresh = np.arange(width + 1)[None, :] >= windows.stale[chosen][:, None]
    negative = np.where(fresh & mask & (weight == 0), item_index, 0)
    weight = np.where(fresh, np.maximum(weight, 0.0), 0.0)
    target = np.where(weight > 0, item_index, 0)
    if ahead > 1:
        if generator is None:
            raise ValueError(f"targets up to {ahead} events ahead are drawn at random: pass a generator")
        target, weight = _drawn_ahead(target, weight, ahead, generator)
    # `feature_row` has QUERIES additional entries for each preceding user.
    rows = _padded(timelines.feature_row, start + QUERIES * user, events, width + 1)[0]
    used, feature_row = np.unique(rows, return_inverse=True)
    length = events - 1
    history = mask[:, 1:]
    return TimelineBatch(
        item_index=torch.from_numpy(np.where(history, item_index[:, :width], 0)),
        event_type=torch.from_numpy(_padded(timelines.event_type, start, length, width)[0].astype(np.int64)),
        gap_seconds=torch.from_numpy(_gaps(timelines, start, length, width, timelines.first[user])),
        length=torch.from_numpy(length),
        user_features=timelines.user_features.select(torch.from_numpy(used)),
        feature_row=torch.from_numpy(feature_row.reshape(rows.shape)),
        target=torch.from_numpy(target),
        weight=torch.from_numpy(weight.astype(np.float32)),
        negative=torch.from_numpy(negative),
    )


def _drawn_ahead(target: Array, weight: Array, ahead: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Replace each positive by one drawn from the next `ahead` positions of its row, if that is a positive.

    target, weight: [b, L + 1]; returned likewise.
    """
    place = np.arange(target.shape[1]) + generator.integers(0, ahead, target.shape)
    inside = place < target.shape[1]
    place = np.minimum(place, target.shape[1] - 1)
    later_target, later_weight = (np.take_along_axis(values, place, axis=1) for values in (target, weight))
    replaced = inside & (weight > 0) & (later_weight > 0)
    return np.where(replaced, later_target, target), np.where(replaced, later_weight, weight)


def query_batch(timelines: Timelines, chosen: Array, *, split: int, query: int, history_length: int) -> TimelineBatch:
    """Pad the newest events before `split` of the chosen users; the vector at position `length` is the query.

    chosen: [b] int64 users. split: events with this label or a later one are left out. query: as in `query_row`.
    """
    first, counts = timelines.events_before(split)
    first, counts = first[chosen], counts[chosen]
    length = np.minimum(counts, history_length)
    start = first + counts - length
    width = int(length.max()) if len(length) else 0
    row = timelines.query_row(query)[chosen]
    used, own_row = np.unique(row, return_inverse=True)
    shape = (len(chosen), width + 1)
    return TimelineBatch(
        item_index=torch.from_numpy(_padded(timelines.item_index, start, length, width)[0].astype(np.int64)),
        event_type=torch.from_numpy(_padded(timelines.event_type, start, length, width)[0].astype(np.int64)),
        gap_seconds=torch.from_numpy(_gaps(timelines, start, length, width, first)),
        length=torch.from_numpy(length.astype(np.int64)),
        user_features=timelines.user_features.select(torch.from_numpy(used)),
        feature_row=torch.from_numpy(np.repeat(own_row.reshape(-1, 1), width + 1, axis=1)),
        target=torch.zeros(shape, dtype=torch.long),
        weight=torch.zeros(shape),
        negative=torch.zeros(shape, dtype=torch.long),
    )


def _flat(table: pa.Table, name: str) -> tuple[Array, Array]:
    """Return offsets [rows + 1] from 0 and the flat values of a list column."""
    column = table[name]
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if len(lists) == 0:
        return np.zeros(1, np.int64), np.zeros(0, lists.type.value_type.to_pandas_dtype())
    offsets = lists.offsets.to_numpy().astype(np.int64)
    values = lists.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], values


def _padded(values: Array, start: Array, length: Array, width: int) -> tuple[Array, Array]:
    """Return [b, width] with values[start : start + length] in each row, then zeros, and the mask of the values."""
    mask = np.arange(width)[None, :] < length[:, None]
    out = np.zeros(mask.shape, np.int64 if values.dtype.kind in "iu" else values.dtype)
    out[mask] = values[ragged_positions(start, np.minimum(length, width))]
    return out, mask


def _gaps(timelines: Timelines, start: Array, length: Array, width: int, first: Array) -> Array:
    """Return [b, width] float32: seconds since the previous event, 0 for a user's first one."""
    now, mask = _padded(timelines.event_seconds, start, length, width)
    before = _padded(timelines.event_seconds, np.maximum(start - 1, first), length, width)[0]
    # The first event of a user has no predecessor: shift the stretch by one, with a gap of 0 for its first event.
    begins = (start == first)[:, None]
    shifted = np.concatenate([now[:, :1], now[:, :-1]], axis=1)
    return np.where(mask, now - np.where(begins, shifted, before), 0).astype(np.float32)
