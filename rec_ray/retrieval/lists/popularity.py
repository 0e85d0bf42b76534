"""Users of whom nothing is known, and what is popular in their segment.

Timelines say who has neither an event nor a feature; counts of positives by segment, from any number of blocks, become
a matrix that the same search and the same filters work on: the score of an item is its share of the positives of the
segment. It knows no vectors of a model, no ids and not what a segment stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.retrieval.features.preprocessing import NUMBERS, TOKENS, FeaturePreprocessor
from rec_ray.retrieval.features.timelines import Timelines

Array = npt.NDArray[Any]

NOW = 2
"""The query row as of now."""
MOST_SEGMENTS = 100
"""Segments with a list of their own, those with the most positives; users of the others get what is popular overall."""
SEGMENT, ITEM_INDEX, POSITIVES = "segment", "item_index", "positives"


def unknown_users(timelines: Timelines, features: FeaturePreprocessor, segment: str | None = None) -> Array:
    """Return [u] bool: the user has no event, and no value of any feature as of now but that of the segment."""
    batch = timelines.user_features
    values = features.shape
    kinds = [(name, declared.kind) for name, declared in features.declarations.items()]
    numbers = np.array([name != segment for name, kind in kinds if kind in NUMBERS], bool)
    # In the order of the encoded fields: each kind keeps the order of the declarations.
    tokens = np.array([name != segment for name, kind in kinds if kind in TOKENS], bool)
    present = np.zeros(len(batch), bool)
    if values.numeric:
        present |= (batch.numeric.numpy()[:, 1::2][:, numbers] == 0).any(axis=1)
    if values.fields:
        present |= (batch.token_counts.numpy()[:, tokens] > 0).any(axis=1)
    if values.vector:
        present |= (batch.vector.numpy() != 0).any(axis=1)
    unknown: Array = (np.diff(timelines.first) == 0) & ~present[timelines.query_row(NOW)]
    return unknown


def count_by_segment(timelines: Timelines, segments: pa.Array) -> pa.Table:
    """Count the positives of each item in each segment. segments: [u] strings, null belongs to none.

    Returns columns segment, item_index (1 on) and positives.
    """
    positive = timelines.weight > 0
    owner = np.repeat(np.arange(len(timelines)), np.diff(timelines.first))[positive]
    table = pa.table({SEGMENT: segments.take(pa.array(owner)), ITEM_INDEX: pa.array(timelines.item_index[positive])})
    counted = table.filter(pc.is_valid(table[SEGMENT])).group_by([SEGMENT, ITEM_INDEX]).aggregate([([], "count_all")])
    return counted.rename_columns([SEGMENT, ITEM_INDEX, POSITIVES])


def add_counts(*parts: pa.Table) -> pa.Table:
    """Add up counts of several blocks."""
    counted = pa.concat_tables(parts).group_by([SEGMENT, ITEM_INDEX]).aggregate([(POSITIVES, "sum")])
    return counted.rename_columns([SEGMENT, ITEM_INDEX, POSITIVES])


@dataclass(frozen=True)
class SegmentPopularity:
    """Popular items of each segment.

    segments: [s] names. matrix: [n, s + 1] float32, each column the shares of the items in the positives of a segment,
    the last one those of all.
    """

    segments: pa.Array
    matrix: Array

    @classmethod
    def of(cls, overall: Array, counts: pa.Table | None = None) -> SegmentPopularity:
        """Make it from the positives of each item, [n], and those by segment, if there are segments."""
        total = overall / max(1, overall.sum())
        if counts is None:
            return cls(pa.array([], pa.string()), total.astype(np.float32).reshape(-1, 1))
        sizes = counts.group_by(SEGMENT).aggregate([(POSITIVES, "sum")])
        largest = sizes.sort_by([(f"{POSITIVES}_sum", "descending"), (SEGMENT, "ascending")]).slice(0, MOST_SEGMENTS)
        segments = largest[SEGMENT].combine_chunks()
        matrix = np.zeros((len(overall), len(segments) + 1), np.float32)
        column = pc.index_in(counts[SEGMENT], value_set=segments).to_pandas().to_numpy()
        kept = ~np.isnan(column.astype(float))
        place = counts[ITEM_INDEX].to_numpy()[kept] - 1
        column = column[kept].astype(np.int64)
        matrix[place, column] = counts[POSITIVES].to_numpy()[kept] / largest[f"{POSITIVES}_sum"].to_numpy()[column]
        matrix[:, -1] = total
        return cls(segments, matrix)

    def queries(self, segments: pa.Array) -> Array:
        """Return [q, s + 1] float32, whose products with the matrix are the shares in each user's segment."""
        column = pc.fill_null(pc.index_in(segments, value_set=self.segments), len(self.segments)).to_numpy()
        queries = np.zeros((len(column), len(self.segments) + 1), np.float32)
        queries[np.arange(len(column)), column] = 1.0
        return queries
