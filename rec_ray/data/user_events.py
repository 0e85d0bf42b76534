"""Bound on the events of one user in an epoch, computed from the data if the setting is `auto`.

Input: blocks of the interactions, each with all rows of its users. Output: the bound. Blocks are counted in parallel.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from rec_ray.retrieval.features.user_share import usual_bound
from rec_ray.schema import ITEM_ID, USER_ID


def events_per_user(interactions: ray.data.Dataset, setting: int | Literal["auto"] | None) -> int | None:
    """Return the bound: the newest events of a user that an epoch learns from; None for all. setting: of this name."""
    if setting != "auto":
        return setting
    counts = ray.get([_users_by_events.remote(block) for block in interactions.to_arrow_refs()])
    total = np.zeros(max((len(count) for count in counts), default=0), np.int64)
    for count in counts:
        total[: len(count)] += count
    return usual_bound(total)


@ray.remote(num_cpus=1)
def _users_by_events(block: pa.Table) -> npt.NDArray[np.int64]:
    return count_users(block[USER_ID].filter(pc.is_valid(block[ITEM_ID]))) if block.num_rows else np.zeros(0, np.int64)


def count_users(user_ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the numbers of users with 0, 1, 2, ... events. user_ids: of all events of some users."""
    counts = pc.value_counts(user_ids)
    return np.bincount(counts.field("counts").to_numpy())
