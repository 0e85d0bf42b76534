"""Learner: towers, optimizers and loss, one step at a time, and the validation NDCG@10 for early stopping.

Input: timelines and a catalogue. Output: a trained model. With several processes of torch.distributed the learners
share negatives and gradients. The module does not use Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import TimelineBatch, Timelines, Windows, query_batch, training_batch
from rec_ray.retrieval.learning.gradients import average_gradients, world_size
from rec_ray.retrieval.learning.losses import (
    ExplicitNegatives,
    bpr_loss,
    gather_candidates,
    global_total_weight,
    inclusion_log_q,
    softmax_loss,
)
from rec_ray.retrieval.learning.optimizer import RowwiseAdam
from rec_ray.retrieval.metrics.metrics import ndcg_at_k
from rec_ray.retrieval.model.inference import (
    drop_excluded,
    embed_as_history,
    embed_catalogue,
    embed_queries,
    seen_items,
)
from rec_ray.retrieval.model.towers import TwoTower
from rec_ray.retrieval.ragged import take_rows
from rec_ray.retrieval.search import ExactTopK

if TYPE_CHECKING:
    from rec_ray.config.training import TrainSettings

Array = npt.NDArray[Any]

BUCKET_BATCHES = 50
"""Number of batches whose windows are sorted by length together: enough to save padding, few enough to stay random."""


UNSEEN_SHARE = 0.25
"""Share of the items without any positive that may be negatives of a batch. They are never targets: as negatives of
every batch their scores fall below all others despite their features; if never negatives, they fill the lists."""


LEAST_RATE = 0.02
"""Final learning rate as a share of the peak."""

WARMUP_STEPS, MOST_WARMUP = 150, 0.3
"""Minimum number of warm-up steps, up to a share of all steps: on small data a share alone is only a few steps, and a
transformer that starts at the full rate collapses all item vectors."""


def shuffled_batches(windows: Windows, batch_size: int, seed: int) -> list[Array]:
    """Return the indices of the windows of each batch: random, with similar lengths to reduce padding.

    batch_size: number of events in a batch, to within one window.
    """
    if not len(windows):
        return []
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(windows))
    together = max(1, int(BUCKET_BATCHES * batch_size / windows.events.mean()))
    batches: list[Array] = []
    for start in range(0, len(order), together):
        bucket = order[start : start + together]
        bucket = bucket[np.argsort(windows.events[bucket], kind="stable")]
        number = np.cumsum(windows.events[bucket]) // batch_size
        batches += np.split(bucket, np.flatnonzero(np.diff(number)) + 1)
    return [batches[i] for i in generator.permutation(len(batches))]


def share_of_learning_rate(step: int, total_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: a linear rise times a cosine (Loshchilov & Hutter 2017).

    step: from 0. warmup: share of the steps in which the rate rises.
    """
    warmup_steps = max(warmup * total_steps, min(WARMUP_STEPS, MOST_WARMUP * total_steps))
    rise = min(1.0, (step + 1) / max(1, int(warmup_steps)))
    return rise * max(LEAST_RATE, 0.5 * (1 + math.cos(math.pi * min(1.0, (step + 1) / total_steps))))


class Learner:
    """State of a training: the model, its optimizers, and the number of finished steps."""

    def __init__(
        self,
        model: TwoTower,
        catalogue: Catalogue,
        settings: TrainSettings,
        *,
        total_steps: int,
        ahead: int = 1,
        device: torch.device | str = "cpu",
        known_rows: Tensor | None = None,
    ) -> None:
        """total_steps: steps of the complete training, over which the learning rate rises and falls.

        ahead: number of next events from which a target is drawn, see `timelines.training_batch`.
        known_rows: [vocabulary_size] bool, item-id rows that an earlier model learned. An item without such a row and
            without a positive event shares row 0, so that only its features count.
        """
        self.model = model.to(device)
        own = torch.from_numpy(catalogue.count > 0)
        if known_rows is not None:
            own |= known_rows[catalogue.id_index]
        self.untrained_rows = catalogue.id_index[~own].unique()
        self.catalogue = replace(catalogue, id_index=torch.where(own, catalogue.id_index, 0)).to(device)
        self.settings = settings
        self.device = torch.device(device)
        self.ahead = ahead
        self.total_steps = max(1, total_steps)
        # Items with training positives are candidates, even if their first-seen time is later.
        self.known = torch.from_numpy(np.flatnonzero(catalogue.known | (catalogue.count > 0))).to(device)
        count = torch.from_numpy(catalogue.count.astype(np.float32))
        self.probability = (count / count.sum().clamp(min=1)).to(device)
        self.has_unseen = bool((self.probability[self.known] == 0).any())
        decayed = [parameter for parameter in model.dense_parameters() if parameter.ndim > 1]
        free = [parameter for parameter in model.dense_parameters() if parameter.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
        self.dense = torch.optim.AdamW(groups, lr=settings.learning_rate, foreach=True)
        self.tables = RowwiseAdam(model.sparse_parameters(), lr=settings.learning_rate)
        self.resume(0)
        # Weights, moments and losses stay float32.
        self.half = multiplies_in_half(settings.precision, self.device)
        rank = dist.get_rank() if world_size() > 1 else 0
        self.negatives = torch.Generator().manual_seed(settings.seed + 1_000_003 * rank)
        self._chance = torch.zeros((), device=device)
        self._chance_steps = 0

    @property
    def steps(self) -> int:
        """Number of finished steps."""
        return int(self.schedules[0].last_epoch)

    def resume(self, steps: int) -> None:
        """Set the number of finished steps, and with it the learning rate of the next one."""

        def share(step: int) -> float:
            return share_of_learning_rate(step, self.total_steps, self.settings.warmup)

        self.schedules = [LambdaLR(optimizer, share, last_epoch=steps - 1) for optimizer in (self.dense, self.tables)]

    def take_chance(self) -> float:
        """Return the mean loss that popularity alone had on the batches since the last call; 0 before the first."""
        mean = float(self._chance) / max(1, self._chance_steps)
        self._chance.zero_()
        self._chance_steps = 0
        return mean

    def batches(self, timelines: Timelines, windows: Windows, epoch: int) -> Iterator[TimelineBatch]:
        """Yield the batches of an epoch in an order that depends on the seed and the epoch."""
        seed = self.settings.seed * 7919 + epoch
        generator = np.random.default_rng([seed, 1])
        for chosen in shuffled_batches(windows, self.settings.batch_size, seed):
            yield training_batch(timelines, windows, chosen, ahead=self.ahead, generator=generator)

    def step(self, batch: TimelineBatch) -> float:
        """Train on one batch and return its loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.loss(batch.to(self.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} at step {self.steps}; try a smaller train.learning_rate or a higher "
                "train.temperature"
            )
        self.dense.zero_grad(set_to_none=True)
        self.tables.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.model)
        self.dense.step()
        self.tables.step()
        for schedule in self.schedules:
            schedule.step()
        return value

    def loss(self, batch: TimelineBatch) -> Tensor:
        """Return the weighted loss of the positives of a batch, averaged so that workers' gradients add up."""
        place = batch.weight > 0
        target, weight = batch.target[place], batch.weight[place]
        total_weight = global_total_weight(weight)
        candidates, places, log_q = self.sample_candidates(target)
        column, drawn = places[: len(target)], places[len(target) :]
        # The items of the batch are embedded once, for history input and as candidates.
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        explicit, row = batch.explicit_negatives(place) if self.settings.explicit_negatives else (none, none)
        wanted = torch.cat([candidates, batch.item_index.reshape(-1), explicit])
        needed, where = torch.unique(wanted, return_inverse=True)
        vectors = self.catalogue.embed(self.model, needed)
        of_candidates, of_history, of_explicit = where.split([len(candidates), batch.item_index.numel(), len(explicit)])
        candidate = vectors[of_candidates]
        past, of_history = torch.unique(of_history, return_inverse=True)
        read = self.catalogue.as_history(self.model, needed[past], vectors[past])
        history = read[of_history].view(*batch.item_index.shape, vectors.shape[1])
        query = self.model.embed_timelines(history, batch)[place]
        settings = self.settings
        if settings.loss == "bpr":
            negative = torch.randint(len(candidates), (len(query),), generator=self.negatives).to(self.device)
            scale = 1.0 if self.model.similarity == "dot" else 1 / settings.temperature
            mean = bpr_loss(query * scale, candidate[column], candidate[negative], weight=weight)
            self._count_chance(torch.full_like(weight, math.log(2)), weight / total_weight)
            return mean * weight.sum() / total_weight
        if log_q is not None and not settings.in_batch_negatives:
            # All draws have equal probability, which cancels out: no correction.
            popular = self.probability[target].clamp(min=1e-12)
            others = self.probability[candidates[drawn.unique()]].sum()
            self._count_chance(torch.log1p(others / popular), weight / total_weight)
            return self._loss_over_draws(query, candidate, column, drawn.unique(), weight / total_weight)
        if log_q is not None and world_size() > 1:
            candidate, ids = gather_candidates(candidate, candidates)
            column = torch.searchsorted(ids, target)
            log_q = self._log_q(ids, len(target) * world_size(), settings.uniform_negatives * world_size())
        else:
            ids = candidates
        popular = self.probability[ids].clamp(min=1e-12).log()
        if log_q is not None:
            popular = popular - log_q
        self._count_chance(popular.logsumexp(0) - popular[column], weight / total_weight)
        return softmax_loss(
            query,
            candidate,
            column,
            temperature=settings.temperature,
            log_q=log_q if settings.log_q else None,
            row_weight=weight / total_weight,
            explicit=ExplicitNegatives(row, vectors[of_explicit]) if len(row) else None,
            label_smoothing=settings.label_smoothing,
        )

    def _count_chance(self, losses: Tensor, row_weight: Tensor) -> None:
        """Add the loss of scores by popularity on a batch. losses, row_weight: [p]."""
        if self.model.training:
            self._chance += (losses.detach() * row_weight).sum()
            self._chance_steps += 1

    def _loss_over_draws(
        self, query: Tensor, candidate: Tensor, column: Tensor, drawn: Tensor, row_weight: Tensor
    ) -> Tensor:
        """Softmax loss of each target among the drawn columns only; a draw of the target itself is left out."""
        logits = query @ candidate[drawn].T / self.settings.temperature
        target = (query * candidate[column]).sum(1) / self.settings.temperature
        smoothing = self.settings.label_smoothing * (target - logits.mean(1))
        others = logits.masked_fill(drawn[None] == column[:, None], float("-inf"))
        rows = torch.logsumexp(torch.cat([target[:, None], others], 1), 1) - target
        return (row_weight * (rows + smoothing)).sum()

    def sample_candidates(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the candidate items of a batch, the columns of its targets and then of its uniform draws, and the log
        of their inclusion probability; with all known items there are no draws and no such probability.
        """
        settings = self.settings
        if settings.uniform_negatives >= len(self.known):
            known = self._some_unseen(self.known)
            return known, torch.searchsorted(known, target), None
        uniform = settings.uniform_negatives
        drawn = torch.cat([target, self._draw(uniform)])
        ids, places = torch.unique(drawn, return_inverse=True)
        return ids, places, self._log_q(ids, len(target), uniform)

    def _draw(self, draws: int) -> Tensor:
        """Return items drawn as negatives, with only some of the items without a positive. [up to draws] int64."""
        drawn = self.known[torch.randint(len(self.known), (draws,), generator=self.negatives).to(self.device)]
        return self._some_unseen(drawn)

    def _some_unseen(self, items: Tensor) -> Tensor:
        if not self.has_unseen:
            return items
        lots = torch.rand(len(items), generator=self.negatives).to(self.device)
        return items[(self.probability[items] > 0) | (lots < UNSEEN_SHARE)]

    def _log_q(self, ids: Tensor, batch_draws: int, uniform_draws: int) -> Tensor:
        return inclusion_log_q(self.probability[ids], batch_draws, uniform_draws, len(self.known))

    @torch.no_grad()
    def validation_ndcg(
        self, timelines: Timelines, users: Array, *, split: int, query: int, history_length: int, exclude_seen: bool
    ) -> tuple[float, int]:
        """Return the sum over users of NDCG@10 on their positives labelled `split`, and the number of users.

        users: [v] indices in `timelines`. The complete known catalogue is ranked.
        """
        self.model.eval()
        items = embed_catalogue(self.model, self.catalogue)
        history = embed_as_history(self.model, self.catalogue, items)
        index = ExactTopK(items.cpu().numpy())
        positives, first = timelines.positives(split)
        total, counted = 0.0, 0
        for start in range(0, len(users), 512):
            chosen = users[start : start + 512]
            batch = query_batch(timelines, chosen, split=split, query=query, history_length=history_length)
            queries = embed_queries(self.model, batch.to(self.device), history).cpu().numpy()
            targets, offsets = take_rows(positives, first, chosen)
            seen = seen_items(timelines, chosen, split) if exclude_seen else None
            targets, offsets = drop_excluded(targets, offsets, seen)
            ranks = index.target_ranks(queries, targets, offsets, seen, self.catalogue.known)
            values = ndcg_at_k(ranks, offsets, 10)
            total += float(np.nansum(values))
            counted += int((np.diff(offsets) > 0).sum())
        return total, counted


def multiplies_in_half(precision: str, device: torch.device) -> bool:
    """Return True if products use bf16, twice as fast on hardware with it. precision: auto, bf16 or float32."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")
