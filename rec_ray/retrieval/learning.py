"""One learner: towers, optimizers and loss, a step at a time, and the validation that tells when to stop.

Timelines and a catalogue come in, a trained model comes out; with several processes of torch.distributed the learner
shares negatives and gradients with the others. It does not know where batches come from, who saves the state, or Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from rec_ray.retrieval.catalogue import Catalogue
from rec_ray.retrieval.feature_columns import ragged_positions
from rec_ray.retrieval.losses import (
    bpr_loss,
    gather_candidates,
    global_total_weight,
    inclusion_log_q,
    softmax_loss,
)
from rec_ray.retrieval.metrics import ndcg_at_k, target_ranks
from rec_ray.retrieval.optimizer import RowwiseAdamW
from rec_ray.retrieval.timelines import TimelineBatch, Timelines, Windows, query_batch, training_batch
from rec_ray.retrieval.towers import TwoTower

Array = npt.NDArray[Any]

BUCKET_BATCHES = 50
"""Batches that are sorted by length among each other: enough to save padding, few enough to stay random."""


@dataclass(frozen=True)
class LearningSettings:
    """How a learner learns; the names are those of the settings section `train`."""

    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: float
    temperature: float
    loss: str
    in_batch_negatives: bool
    uniform_negatives: int
    log_q: bool
    label_smoothing: float
    seed: int


def shuffled_batches(windows: Windows, batch_size: int, seed: int) -> list[Array]:
    """Return the places of the windows of each batch: random, but alike in length, so that little is padding."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(windows))
    batches: list[Array] = []
    for start in range(0, len(order), batch_size * BUCKET_BATCHES):
        bucket = order[start : start + batch_size * BUCKET_BATCHES]
        bucket = bucket[np.argsort(windows.events[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


class Learner:
    """The state of a training: the model, its optimizers, and the number of steps done."""

    def __init__(
        self,
        model: TwoTower,
        catalogue: Catalogue,
        settings: LearningSettings,
        *,
        total_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """total_steps: steps of the whole training, over which the learning rate rises and falls."""
        self.model = model.to(device)
        self.catalogue = catalogue.to(device)
        self.settings = settings
        self.device = torch.device(device)
        self.total_steps = max(1, total_steps)
        self.steps = 0
        self.known = torch.from_numpy(np.flatnonzero(catalogue.known)).to(device)
        count = torch.from_numpy(catalogue.count.astype(np.float32))
        self.probability = (count / count.sum().clamp(min=1)).to(device)
        self.dense = torch.optim.AdamW(
            model.dense_parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.tables = RowwiseAdamW(model.sparse_parameters(), lr=settings.learning_rate)
        self.negatives = torch.Generator().manual_seed(settings.seed)

    def batches(self, timelines: Timelines, windows: Windows, epoch: int) -> Iterator[TimelineBatch]:
        """Yield the batches of an epoch in an order that the seed and the epoch decide."""
        for chosen in shuffled_batches(windows, self.settings.batch_size, self.settings.seed * 7919 + epoch):
            yield training_batch(timelines, windows, chosen)

    def step(self, batch: TimelineBatch) -> float:
        """Learn from one batch and return its loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        self._set_learning_rate()
        self.model.train()
        loss = self.loss(batch.to(self.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} at step {self.steps}; try a smaller train.learning_rate or a higher temperature"
            )
        self.dense.zero_grad(set_to_none=True)
        self.tables.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.dense_parameters(), 1.0)
        self.dense.step()
        self.tables.step()
        self.steps += 1
        return value

    def loss(self, batch: TimelineBatch) -> Tensor:
        """Return the weighted loss of the positives of a batch, averaged so that workers' gradients add up."""
        place = batch.weight > 0
        target, weight = batch.target[place], batch.weight[place]
        weight = weight / weight.mean().clamp(min=1e-12)
        candidates, column, log_q = self._candidates(target)
        # The items of the batch are embedded once, whether they are read as history or scored as candidates.
        needed, where = torch.unique(torch.cat([candidates, batch.item_index.reshape(-1)]), return_inverse=True)
        vectors = self.catalogue.embed(self.model, needed)
        candidate = vectors[where[: len(candidates)]]
        history = vectors[where[len(candidates) :]].view(*batch.item_index.shape, -1)
        query = self.model.embed_timelines(
            history, batch.event_type, batch.gap_seconds, batch.length, batch.user_features, batch.feature_row
        )[place]
        settings = self.settings
        if settings.loss == "bpr":
            drawn = torch.randint(len(candidates), (len(query),), generator=self.negatives).to(self.device)
            scale = 1.0 if self.model.similarity == "dot" else 1 / settings.temperature
            return bpr_loss(query * scale, candidate[column], candidate[drawn], weight=weight)
        if _world() > 1 and log_q is not None:
            candidate, ids = gather_candidates(candidate, candidates)
            column = torch.searchsorted(ids, target)
            log_q = self._log_q(ids, len(target) * _world(), settings.uniform_negatives * _world())
        return softmax_loss(
            query,
            candidate,
            column,
            temperature=settings.temperature,
            log_q=log_q if settings.log_q else None,
            weight=weight,
            total_weight=global_total_weight(weight),
            label_smoothing=settings.label_smoothing,
        )

    def _candidates(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the items that a batch is scored against, the place of each target, and the log of their chance."""
        settings = self.settings
        if settings.uniform_negatives >= len(self.known):
            return self.known, torch.searchsorted(self.known, target), None
        uniform = 0
        drawn = target
        if settings.uniform_negatives:
            uniform = settings.uniform_negatives
            places = torch.randint(len(self.known), (uniform,), generator=self.negatives).to(self.device)
            drawn = torch.cat([target, self.known[places]])
        ids, column = torch.unique(drawn, return_inverse=True)
        return ids, column[: len(target)], self._log_q(ids, len(target), uniform)

    def _log_q(self, ids: Tensor, batch_draws: int, uniform_draws: int) -> Tensor:
        return inclusion_log_q(self.probability[ids], batch_draws, uniform_draws, len(self.known))

    def _set_learning_rate(self) -> None:
        """Rise linearly over the warm-up, then fall along a cosine to a tenth (Loshchilov & Hutter 2017)."""
        warmup = max(1, int(self.settings.warmup * self.total_steps))
        if self.steps < warmup:
            factor = (self.steps + 1) / warmup
        else:
            done = min(1.0, (self.steps - warmup) / max(1, self.total_steps - warmup))
            factor = 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        for optimizer in (self.dense, self.tables):
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * factor

    @torch.no_grad()
    def validation_ndcg(
        self, timelines: Timelines, users: Array, *, split: int, query: int, history_length: int, exclude_seen: bool
    ) -> tuple[float, int]:
        """Return the sum over users of NDCG@10 on their positives labelled `split`, and the number of users.

        users: [v] places in `timelines`. The whole known catalogue is ranked.
        """
        self.model.eval()
        items = embed_catalogue(self.model, self.catalogue)
        positives, first = timelines.positives(split)
        total, counted = 0.0, 0
        for start in range(0, len(users), 512):
            chosen = users[start : start + 512]
            batch = query_batch(timelines, chosen, split=split, query=query, history_length=history_length)
            queries = embed_queries(self.model, items, batch.to(self.device)).cpu().numpy()
            targets, offsets = take_ragged(positives, first, chosen)
            seen = seen_items(timelines, chosen, split) if exclude_seen else None
            targets, offsets = without(targets, offsets, seen)
            ranks = target_ranks(
                queries, items.cpu().numpy(), targets, offsets, exclude=seen, allowed=self.catalogue.known
            )
            values = ndcg_at_k(ranks, offsets, 10)
            total += float(np.nansum(values))
            counted += int((np.diff(offsets) > 0).sum())
        return total, counted


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_gradients(model: TwoTower) -> None:
    """Average the gradients of all workers: dense ones in one message, of tables only the rows that any of them has."""
    world = _world()
    if world == 1:
        return
    dense = [parameter for parameter in model.dense_parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    for parameter, part in zip(dense, flat.split([p.numel() for p in dense]), strict=True):
        parameter.grad = part.view_as(parameter)
    for table in model.sparse_parameters():
        gradient = table.grad
        if gradient is None:
            rows, values = torch.zeros(0, dtype=torch.long), torch.zeros(0, table.shape[1])
        else:
            coalesced = gradient.coalesce()
            rows, values = coalesced.indices()[0], coalesced.values()
        rows, values = _gather_rows(rows.to(table.device), values.to(table.device), world)
        table.grad = torch.sparse_coo_tensor(rows[None], values / world, table.shape).coalesce()


def _gather_rows(rows: Tensor, values: Tensor, world: int) -> tuple[Tensor, Tensor]:
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.zeros_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    most = max(int(s) for s in sizes)
    padded_rows = torch.nn.functional.pad(rows, (0, most - len(rows)))
    padded_values = torch.nn.functional.pad(values, (0, 0, 0, most - len(values)))
    all_rows = [torch.empty_like(padded_rows) for _ in range(world)]
    all_values = [torch.empty_like(padded_values) for _ in range(world)]
    dist.all_gather(all_rows, padded_rows)
    dist.all_gather(all_values, padded_values)
    kept_rows = [r[: int(s)] for r, s in zip(all_rows, sizes, strict=True)]
    kept_values = [v[: int(s)] for v, s in zip(all_values, sizes, strict=True)]
    return torch.cat(kept_rows), torch.cat(kept_values)


@torch.no_grad()
def embed_catalogue(model: TwoTower, catalogue: Catalogue, block: int = 8192) -> Tensor:
    """Return the vectors of all items as [n + 1, d]; row 0 is zero."""
    model.eval()
    index = torch.arange(1, len(catalogue) + 1, device=catalogue.id_index.device)
    parts = [catalogue.embed(model, part) for part in index.split(block)]
    return torch.cat([torch.zeros(1, parts[0].shape[1], device=index.device), *parts])


@torch.no_grad()
def embed_queries(model: TwoTower, items: Tensor, batch: TimelineBatch) -> Tensor:
    """Return the vector of each user of a query batch, [b, d]. items: [n + 1, d], as from `embed_catalogue`."""
    model.eval()
    return model.embed_users(
        items[batch.item_index],
        batch.event_type,
        batch.gap_seconds,
        batch.length,
        batch.user_features,
        batch.feature_row,
    )


def take_ragged(values: Array, first: Array, rows: Array) -> tuple[Array, Array]:
    """Return the values of the chosen rows of a ragged array, and where each row's begin, [len(rows) + 1]."""
    lengths = first[rows + 1] - first[rows]
    return values[ragged_positions(first[rows], lengths)], np.concatenate([[0], np.cumsum(lengths)])


def seen_items(timelines: Timelines, users: Array, split: int) -> tuple[Array, Array]:
    """Return what the chosen users interacted with before `split`: items [T] and where each user's begin."""
    begin, counts = timelines.events_before(split)
    lengths = counts[users]
    positions = ragged_positions(begin[users], lengths)
    return timelines.item_index[positions], np.concatenate([[0], np.cumsum(lengths)])


def without(targets: Array, offsets: Array, seen: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """Leave out targets that are excluded from the ranking anyway, and repeats of a target of the same user."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys = user.astype(np.int64) << 32 | targets.astype(np.int64)
    kept = np.unique(keys)
    if seen is not None:
        seen_user = np.repeat(np.arange(len(seen[1]) - 1), np.diff(seen[1]))
        kept = np.setdiff1d(kept, seen_user.astype(np.int64) << 32 | seen[0].astype(np.int64), assume_unique=False)
    counts = np.bincount((kept >> 32).astype(np.int64), minlength=len(offsets) - 1)
    return (kept & 0xFFFFFFFF).astype(np.int64), np.concatenate([[0], np.cumsum(counts)])
