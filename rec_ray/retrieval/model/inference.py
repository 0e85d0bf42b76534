"""Vectors of a trained model: items, items as history input, and users.

Input: a model, a catalogue and query batches. Output: tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import TimelineInputs, Timelines
from rec_ray.retrieval.model.towers import TwoTower
from rec_ray.retrieval.ragged import ragged_positions

Array = npt.NDArray[Any]


@torch.no_grad()
def embed_catalogue(model: TwoTower, catalogue: Catalogue, block: int = 8192) -> Tensor:
    """Return the vectors of all items as [n + 1, d]; row 0 is zero."""
    model.eval()
    index = torch.arange(1, len(catalogue) + 1, device=catalogue.id_index.device)
    parts = [catalogue.embed(model, part) for part in index.split(block)]
    return torch.cat([torch.zeros(1, parts[0].shape[1], device=index.device), *parts])


@torch.no_grad()
def embed_as_history(model: TwoTower, catalogue: Catalogue, items: Tensor) -> Tensor:
    """Return the history-input vectors of the items of `embed_catalogue`: [n + 1, d]; row 0 is padding."""
    model.eval()
    return catalogue.as_history(model, torch.arange(len(items), device=items.device), items)


@torch.no_grad()
def embed_queries(model: TwoTower, batch: TimelineInputs, history: Tensor) -> Tensor:
    """Return the vector of each user of a query batch, [b, d]. history: [n + 1, d], as from `embed_as_history`."""
    if model.training:  # Check first: switching the mode of every submodule takes as long as embedding ten users.
        model.eval()
    return model.embed_users(history, batch)


def seen_items(
    timelines: Timelines, users: Array, split: int, types: Array | None = None, since: float | None = None
) -> tuple[Array, Array]:
    """Return the items of the chosen users' events before `split`: items [T] and the offset of each user.

    types: codes of the event types that count, None for all. since: seconds since 1970 from which events count.
    """
    begin, counts = timelines.events_before(split)
    lengths = counts[users]
    positions = ragged_positions(begin[users], lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if types is None and since is None:
        return timelines.item_index[positions], offsets
    counted = np.ones(len(positions), bool)
    if types is not None:
        counted &= np.isin(timelines.event_type[positions], types)
    if since is not None:
        counted &= timelines.event_seconds[positions] >= since
    return timelines.item_index[positions[counted]], np.concatenate([[0], np.cumsum(counted)])[offsets]


def drop_excluded(targets: Array, offsets: Array, seen: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """Remove targets that are excluded from the ranking, and repeated targets of a user."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys = user.astype(np.int64) << 32 | targets.astype(np.int64)
    kept = np.unique(keys)
    if seen is not None:
        seen_user = np.repeat(np.arange(len(seen[1]) - 1), np.diff(seen[1]))
        kept = np.setdiff1d(kept, seen_user.astype(np.int64) << 32 | seen[0].astype(np.int64), assume_unique=False)
    counts = np.bincount((kept >> 32).astype(np.int64), minlength=len(offsets) - 1)
    return (kept & 0xFFFFFFFF).astype(np.int64), np.concatenate([[0], np.cumsum(counts)])
