"""Initial item vectors from counts: the leading directions of the matrix of users and items.

Input: the training positives of users. Output: a unit vector per item; items that the same users have lie close to each
other. A training that starts there has the knowledge of item-kNN before its first step, which small data cannot teach
to random vectors in a few hundred steps. See docs/experiments.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.model.towers import TABLE_STD, TwoTower
from rec_ray.retrieval.ragged import value_rows

SPARE = 8
"""Additional directions of the iteration, which make the wanted ones more accurate (Halko et al. 2011)."""
ROUNDS = 5
"""Rounds of the iteration. More of them do not change a training."""

Array = npt.NDArray[Any]


@torch.no_grad()
def start_from_counts(
    model: TwoTower,
    catalogue: Catalogue,
    items: Array,
    offsets: Array,
    *,
    total: Callable[[Tensor], Tensor],
    seed: int,
) -> None:
    """Replace the initial item rows of a model by `spectral_vectors`, of the same length as random rows.

    The rows of items without a positive stay as they are. Arguments as in `spectral_vectors`.
    """
    table = model.item_tower.ids.weight
    counted, vectors = spectral_vectors(items, offsets, len(catalogue) + 1, table.shape[1], total=total, seed=seed)
    rows = catalogue.id_index[counted]
    table[rows[rows > 0]] = vectors[rows > 0] * TABLE_STD * math.sqrt(table.shape[1])


def spectral_vectors(
    items: Array, offsets: Array, item_count: int, size: int, *, total: Callable[[Tensor], Tensor], seed: int
) -> tuple[Tensor, Tensor]:
    """Return the items with a user, and unit vectors of them from a truncated singular value decomposition.

    The matrix has a row per user and a 1 for each item of the user, divided by the square root of the item's users, so
    that the product of two columns is the cosine of item-kNN (PureSVD, Cremonesi et al. 2010). Directions are weighted
    by the squares of their singular values.

    items: [events] item indices below `item_count`, users in the order of `offsets` [users + 1].
    total: sums a tensor over all workers, each of which has other users.
    seed: of the first directions, the same on all workers.

    Returns:
        Item indices [m] int64, ascending, and vectors [m, size] float32 with zeros above the rank of the matrix.
    """
    keys = np.unique(value_rows(offsets).astype(np.int64) * item_count + items)
    user, item = (torch.from_numpy(part) for part in np.divmod(keys, item_count))
    users = total(torch.bincount(item, minlength=item_count).float())
    counted = users.nonzero()[:, 0]
    place = torch.zeros(item_count, dtype=torch.long)
    place[counted] = torch.arange(len(counted))
    shape, weight = (len(offsets) - 1, len(counted)), users[item].rsqrt()
    cells = torch.stack([user, place[item]])
    matrix = torch.sparse_coo_tensor(cells, weight, shape, check_invariants=True).coalesce()
    transposed = matrix.t().coalesce()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(len(counted), min(size + SPARE, len(counted)), generator=generator)
    for _ in range(ROUNDS):
        directions, _ = torch.linalg.qr(total(transposed @ (matrix @ directions)))
    scores = matrix @ directions
    energy, turn = torch.linalg.eigh(total(scores.T @ scores))
    # Ascending: the last ones are the strongest.
    vectors = directions @ turn.flip(1)[:, :size] * energy.flip(0)[:size].clamp(min=0)
    return counted, F.pad(F.normalize(vectors, dim=1), (0, max(0, size - vectors.shape[1])))
