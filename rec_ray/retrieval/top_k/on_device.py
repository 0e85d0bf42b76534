"""Exact top-k on a CUDA device (or any that torch has): chunked products, the best of each chunk, exact scores at last.

In come an item matrix, a device, queries, k and what must not be returned; out go the lists of `ExactTopK`, in the same
order. It knows nothing of users, of batches of a run, or of how many devices there are.

A device sums products in an order of its own, so its scores only choose: k and some spare items of each query, whose
scores are then computed again as the float32 chain. Where the spare ones are too close to the k-th to be sure, the
query goes to `ExactTopK` on the processor. Only groups of items with the highest maxima are looked at twice, so a chunk
of scores is read about once.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rec_ray.retrieval.top_k.exact import ExactTopK
from rec_ray.retrieval.top_k.float_search import as_tensor
from rec_ray.retrieval.top_k.lists import ITEM_BITS, NO_ITEM, Exclusions, chosen_of, descending, lists_of_keys, owners
from rec_ray.retrieval.top_k.quantised import largest_norm

_GROUP = 32
_SPARE = 28


class DeviceTopK:
    """Search of one item matrix on a device.

    items: [n, d] float32.  device: such as "cuda".  chunk: items multiplied at a time.  batch: queries at a time; the
    two bound the memory on the device, 4 bytes a score, beside the items.
    """

    def __init__(
        self, items: NDArray[np.float32], device: str | torch.device, *, chunk: int = 131_072, batch: int = 2048
    ) -> None:
        self.item_count = len(items)
        self.device, self.chunk, self.batch = torch.device(device), chunk, batch
        self._exact = ExactTopK(items)
        self._largest_norm = largest_norm(items, "item")
        self._items = as_tensor(items).to(self.device)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the indices and scores of the k best items of each query, as `ExactTopK.search` does."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries, exclude = self._exact._checked(queries, exclude, allowed)
        k = min(k, self.item_count)
        indices = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        sure = np.full(len(queries), not k)
        blocked = None if allowed is None else torch.from_numpy(~allowed).to(self.device)
        # the device and the chain each round once a step, whatever the order
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        slack = 2.2 * (queries.shape[1] + 4) * 2.0**-24 * norms * self._largest_norm + 1e-37
        for start in range(0, len(queries), self.batch) if k else ():
            part = slice(start, min(start + self.batch, len(queries)))
            chosen = np.arange(part.start, part.stop)
            indices[part], scores[part], sure[part] = self._best(
                queries[part], k, chosen_of(exclude, chosen), blocked, slack[part]
            )
        again = np.flatnonzero(~sure)
        if len(again):
            indices[again], scores[again] = self._exact.search(queries[again], k, chosen_of(exclude, again), allowed)
        return indices, scores

    def _best(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions,
        blocked: torch.Tensor | None,
        slack: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Return the lists of one batch of queries, and for which of them they are certain."""
        vectors = torch.from_numpy(queries).to(self.device)
        wanted = min(k + _SPARE, self.item_count)
        best = torch.full((len(queries), 0), -torch.inf, device=self.device)
        places = torch.zeros((len(queries), 0), dtype=torch.long, device=self.device)
        item, query = (
            torch.from_numpy(part.astype(np.int64)).to(self.device) for part in (exclude[0], owners(exclude))
        )
        for start in range(0, self.item_count, self.chunk):
            end = min(start + self.chunk, self.item_count)
            padded = -(-(end - start) // _GROUP) * _GROUP
            tile = torch.full((len(queries), padded), -torch.inf, device=self.device)
            torch.matmul(vectors, self._items[start:end].t(), out=tile[:, : end - start])
            if blocked is not None:
                tile[:, : end - start].masked_fill_(blocked[start:end], -torch.inf)
            inside = (item >= start) & (item < end)
            tile[query[inside], item[inside] - start] = -torch.inf
            groups = tile.view(len(queries), -1, _GROUP)
            # the best items lie in as many groups with the highest maxima
            top = groups.amax(2).topk(min(wanted, groups.shape[1]), dim=1).indices
            found = torch.gather(groups, 1, top[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
            at = (top[:, :, None] * _GROUP + torch.arange(_GROUP, device=self.device)).flatten(1) + start
            at.clamp_(max=self.item_count - 1)  # padding, whose score says that it is none
            best, order = torch.cat([best, found], 1).topk(min(wanted, best.shape[1] + found.shape[1]), dim=1)
            places = torch.gather(torch.cat([places, at], 1), 1, order)
        exact = self._chain(vectors, places)
        exact[best == -torch.inf] = -torch.inf
        device_scores, found_scores = best.cpu().numpy(), exact.cpu().numpy()
        last = device_scores[:, -1].astype(np.float64)
        # nothing was left behind, or what was is certainly below the k-th
        sure = np.isneginf(last) | (len(device_scores.T) == self.item_count) | (last + slack < device_scores[:, k - 1])
        keys = descending(found_scores) << ITEM_BITS | places.cpu().numpy()
        keys[np.isneginf(found_scores)] = NO_ITEM
        keys.sort(axis=1)
        return *lists_of_keys(keys[:, :k]), sure

    def _chain(self, queries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return the float32 chains [q, m] of the items at places [q, m]: each step in float64, rounded to float32.

        The product of two float32 is exact in float64. The sum is rounded twice, which differs from a fused
        multiply-add once in about 2**29 steps, by the last bit.
        """
        vectors = self._items[places]
        score = torch.zeros(places.shape, device=self.device)
        for i in range(queries.shape[1]):
            score = (score.double() + queries[:, i : i + 1].double() * vectors[:, :, i].double()).float()
        return score
