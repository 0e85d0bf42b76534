"""Removes late features from the model: features known today that were unknown at the time of most events.

Input: the coverage of users, the loaded items and the settings. Output: settings without the late features, and
warnings. A feature that training never saw would reach untrained weights at publication.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data

from rec_ray.config import FeatureSettings
from rec_ray.data.feature_coverage import Coverage, cover_items, describe_expired, describe_late, describe_unmatched
from rec_ray.errors import DataError
from rec_ray.schema import ITEM_ID


def describe_ids(users: Coverage, items_of_events: Iterable[str], item_ids: pa.Array) -> list[str]:
    """Return warnings about ids of the events without a matching user or item in the feature store."""
    items = Coverage()
    items.match_ids(pa.array(sorted(items_of_events), pa.string()), item_ids)
    return [said for said in (describe_unmatched("user", users), describe_unmatched("item", items)) if said]


def drop_late_features(
    features: FeatureSettings,
    users: Coverage,
    items: ray.data.Dataset,
    items_before_test: Iterable[str],
    notes: Sequence[str],
) -> tuple[FeatureSettings, list[str]]:
    """Return the settings without late features, and warnings that name them and the expired ones.

    items: blocks from `load_items`. notes: messages about views that begin after the events.

    Raises:
        DataError: every declared feature of a side is late.
    """
    seen = ray.put(pa.array(sorted(items_before_test), pa.string()))
    blocks = [_cover_item_block.remote(ref, seen, list(features.item)) for ref in items.to_arrow_refs()]
    of_items = functools.reduce(Coverage.merge, ray.get(blocks), Coverage())
    kept: dict[str, Any] = {}
    said: list[str] = []
    for side, declared, coverage in (("user", features.user, users), ("item", features.item, of_items)):
        late = coverage.late()
        said += describe_expired(side, coverage.expired())
        kept[side] = {name: declaration for name, declaration in declared.items() if name not in late}
        if late and not kept[side]:
            raise DataError(
                f"every declared {side} feature is missing from training: {describe_late(side, late, notes)}"
            )
        if late:
            said.append(f"left out of the model: {describe_late(side, late, notes)}")
    return features.model_copy(update=kept), said


@ray.remote(num_cpus=1)
def _cover_item_block(block: pa.Table, in_events: pa.Array, fields: list[str]) -> Coverage:
    return cover_items(block, in_events, ITEM_ID, fields) if block.num_rows else Coverage()
