"""Loop of a training worker: read the shard, try the planned histories, keep the best epoch, and refit it.

Input: a `TrainingPlan` with the folders of the encoded data. Output: one checkpoint per epoch, from which a replaced
worker or a restarted run resumes with the same batches in the same order and the same random numbers. The module uses
neither Feast nor raw ids.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from rec_ray.config import TrainSettings
from rec_ray.contracts import EpochResult
from rec_ray.logs import LOGGER
from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.event_order import EventOrder, measure_order
from rec_ray.retrieval.features.timelines import TimelineBatch
from rec_ray.retrieval.learning.attempts import SPREAD_ITEMS, Attempt, careful_attempt, measure_spread, plan_attempts
from rec_ray.retrieval.learning.gradients import world_size
from rec_ray.retrieval.learning.learner import Learner
from rec_ray.retrieval.learning.prefetch import prefetched
from rec_ray.retrieval.learning.spectral_start import start_from_counts
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower
from rec_ray.retrieval.model.warm_start import load_start, share_unknown_row
from rec_ray.schema import Split
from rec_ray.storage.object_store import Storage
from rec_ray.training.checkpoint import AttemptRecord, Progress, Send, send_to_ray_train
from rec_ray.training.shard import Shard

REFIT_RATE = 0.5
"""Peak learning rate of `refit: continue` as a share of that of the training."""

MOST_AHEAD = 4
"""Maximum number of next events from which `ahead: auto` draws a target."""

LEARN, CHECK, PUBLISH = "learn", "check", "publish"
"""Stages of a training, in order: the evaluated model; its refit with the validation events, to measure the gain of
refitting; its refit with all events, for publishing."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TrainingPlan:
    """Input of a worker.

    arguments: arguments of `build_two_tower`, without the history. history: auto, none, mean or transformer.
    timelines, catalogue, catalogue_now: folders; the catalogues, with `items` items each, are as of the test cut-off
    and as of now. start: key of the initial weights in the layout of `warm_start.carry_over`, or None. started: time of
    the request for the training, in seconds since 1970.
    """

    arguments: dict[str, Any]
    history: str
    user_shape: FeatureShape
    item_shape: FeatureShape
    timelines: str
    catalogue: str
    catalogue_now: str
    items: int
    storage: Storage
    train: TrainSettings
    history_length: int
    validation_users: int
    exclude_seen: bool
    threads: int | None
    started: float
    start: str | None = None


@dataclass(frozen=True)
class Stage:
    """Stage of a training. max_split: events with this label or a later one are not used for training."""

    name: str
    max_split: int


def stages_of(train: TrainSettings) -> list[Stage]:
    """Return the stages that the settings select, in order."""
    learn = Stage(LEARN, Split.VALIDATION)
    if train.refit == "off":
        return [learn]
    check = [Stage(CHECK, Split.TEST)] if train.refit_check else []
    return [learn, *check, Stage(PUBLISH, Split.TEST + 1)]


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run all stages of the plan in `config["plan"]`, from the checkpoint of the run if there is one."""
    # Lazy import: `train_stages` also runs in a process without Ray.
    import ray.train.torch

    context = ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    train_stages(config["plan"], Progress.load(), rank=rank, world=world, device=device, send=send_to_ray_train)


def train_stages(
    plan: TrainingPlan, progress: Progress, *, rank: int, world: int, device: torch.device, send: Send
) -> Progress:
    """Run the stages of a plan that `progress` has not finished, and return the progress.

    send: reports the metrics of an epoch and the folder of its checkpoint.
    """
    # With more threads than free cores, OpenMP threads spin while they wait.
    torch.set_num_threads(plan.threads or plan.train.cpus_per_worker)
    shard = Shard(
        plan.timelines,
        plan.storage.filesystem,
        plan.user_shape,
        items=plan.items,
        history_length=plan.history_length,
        cache_bytes=plan.train.cache_bytes,
        watched_users=plan.validation_users,
        rank=rank,
        world=world,
    )
    positives = _summed(shard.positives, device)
    asked = int(_summed(np.array([shard.asked]), device)[0])
    shared = _Shared(plan, shard, positives, _ahead(plan, positives, asked), progress, rank, world, device, send)
    for number, stage in enumerate(stages_of(plan.train)):
        if stage.name in progress.finished:
            continue
        if stage.name == LEARN:
            _learn_attempts(shared, stage, asked)
        else:
            _Worker(shared, stage, number, progress.attempts[progress.chosen].attempt).learn()
    return progress


def _ahead(plan: TrainingPlan, positives: Array, asked: int) -> int:
    """Return the number of events from which a target is drawn. asked: number of users with a validation positive."""
    if plan.train.ahead != "auto":
        return plan.train.ahead
    # Subtract a quarter: with 1.25 validation events per user, most targets are just the next event.
    return max(1, min(MOST_AHEAD, math.ceil(positives[Split.VALIDATION].sum() / max(1, asked) - 0.25)))


def _learn_attempts(shared: _Shared, stage: Stage, asked: int) -> None:
    """Run the planned attempts, and a careful one if the best of them collapsed."""
    plan, progress = shared.plan, shared.progress
    if not progress.attempts:
        order = _order_of_events(shared) if plan.history == "auto" else None
        learned = int(shared.positives[: stage.max_split].sum())
        attempts, progress.reason = plan_attempts(plan.history, learned, validated=asked > 0, order=order)
        progress.attempts = [AttemptRecord(attempt) for attempt in attempts]
        if shared.rank == 0:
            LOGGER.info("history: %s", progress.reason)
    while True:
        for number, record in enumerate(progress.attempts):
            if not record.done:
                _Worker(shared, stage, number, record.attempt).learn()
        chosen = progress.attempts[progress.chosen]
        if not chosen.has_collapsed(plan.items) or any(one.attempt.careful for one in progress.attempts):
            return
        careful = careful_attempt(plan.history)
        if shared.rank == 0:
            LOGGER.warning(
                "training collapsed: %s; one more attempt with a third of the learning rate, a long warm-up and "
                "history %s",
                chosen.describe_collapse(),
                careful.history,
            )
        progress.attempts.append(AttemptRecord(careful))


def _order_of_events(shared: _Shared) -> EventOrder:
    """Measure the order of the training positives on a part of each worker's users."""
    items, offsets = shared.shard.sample_positives(Split.VALIDATION)
    order = measure_order(items, offsets, shared.plan.items + 1, seed=shared.plan.train.seed)
    return EventOrder(*_summed(np.array(dataclasses.astuple(order)), shared.device).tolist())


@dataclass(frozen=True)
class _Shared:
    """State shared by all attempts and stages of a worker. positives: [3, items + 1] of all workers, as in `Shard`."""

    plan: TrainingPlan
    shard: Shard
    positives: Array
    ahead: int
    progress: Progress
    rank: int
    world: int
    device: torch.device
    send: Send


class _Worker:
    """One stage on one worker, or one attempt at the first stage."""

    def __init__(self, shared: _Shared, stage: Stage, number: int, attempt: Attempt) -> None:
        """number: index of the stage or of the attempt."""
        self.shared, self.stage, self.number, self.attempt = shared, stage, number, attempt
        self.plan, self.shard, self.progress = shared.plan, shared.shard, shared.progress
        self.rank, self.world = shared.rank, shared.world
        train, progress = self.plan.train, self.progress
        self.from_best = stage.name != LEARN and train.refit == "continue"
        events = self.shard.events[stage.max_split]
        steps = self._agreed(max(1, -(-events // train.batch_size)), dist.ReduceOp.MAX)
        most = train.passes(steps)
        self.patience = train.patient_passes(steps)
        self.epochs = most
        if stage.name != LEARN:
            self.epochs = train.refit_epochs if self.from_best else progress.best_epoch
        # A full refit repeats the schedule of the training up to its best epoch.
        scheduled = self.epochs if self.from_best else most
        settings = attempt.adapt(train)
        if self.from_best:
            settings = settings.model_copy(update={"learning_rate": settings.learning_rate * REFIT_RATE})
        self.catalogue = _read_catalogue(self.plan, now=stage.name == PUBLISH)
        model, known_rows = self._first_model()
        self.learner = Learner(
            model,
            dataclasses.replace(self.catalogue, count=shared.positives[: stage.max_split].sum(axis=0)),
            settings,
            total_steps=steps * scheduled,
            ahead=shared.ahead,
            device=shared.device,
            known_rows=known_rows,
        )
        number_of_attempt = number if stage.name == LEARN else 0
        if (progress.stage, progress.attempt) == (stage.name, number_of_attempt) and progress.stage_epochs:
            progress.restore(self.learner)
        progress.begin(stage.name, number_of_attempt)
        progress.course = {"history": attempt.history, "epochs": self.epochs}

    def _first_model(self) -> tuple[TwoTower, torch.Tensor | None]:
        """Return the initial towers and a mask of the item-id rows that an earlier version has learned."""
        # Equal on all workers, unlike dropout and negatives: see `_seed`.
        torch.manual_seed(self.plan.train.seed)
        model, known_rows = build_two_tower(**self.plan.arguments, history=self.attempt.history), None
        if self.plan.start is not None:
            known_rows = load_start(self.plan.storage.read_bytes(self.plan.start), model)
        if self.from_best:
            model.load_state_dict(self.progress.models[LEARN])
        elif self.plan.start is None:
            counted = self.shard.sample_positives(self.stage.max_split)
            total = functools.partial(_summed_tensor, device=self.shared.device)
            start_from_counts(model, self.catalogue, *counted, total=total, seed=self.plan.train.seed)
        return model, known_rows

    def learn(self) -> None:
        """Train until the last epoch of the stage or, with validation, until the validation no longer improves."""
        progress, watches = self.progress, self.stage.name == LEARN
        over = watches and progress.attempts[self.number].is_over(self.patience)
        while progress.stage_epochs < self.epochs and not over:
            epoch = progress.stage_epochs + 1
            self._seed(epoch)
            started = time.perf_counter()
            losses, positives = [], 0
            for batch in self._in_step(epoch):
                losses.append(self.learner.step(batch))
                if progress.seconds_to_first_step is None:
                    progress.seconds_to_first_step = time.time() - self.plan.started
                positives += int((batch.weight > 0).sum())
            seconds = time.perf_counter() - started
            chance = self.learner.take_chance()
            self._average()
            plain, averaged, users = self._validate() if watches else (0.0, 0.0, 0)
            sums = _summed(np.array([plain, averaged, users, positives], np.float64), self.shared.device).tolist()
            # Means over the workers, so that all stop and restart together.
            own = [float(np.mean(losses or [0.0])), chance, *(self._spread() if watches else (0.0, 0.0))]
            loss, chance, rank, cosine = (_summed(np.array(own), self.shared.device) / self.world).tolist()
            result = EpochResult(
                epoch=epoch,
                loss=loss,
                validation_ndcg=max(sums[:2]) / sums[2] if sums[2] else 0.0,
                seconds=seconds,
                examples_per_second=sums[3] / seconds,
                averaged=sums[1] > sums[0],
                chance=chance,
                effective_rank=rank,
                mean_cosine=cosine,
            )
            improved = progress.add(result, watched=sums[2] > 0) if watches else epoch == self.epochs
            if improved:
                progress.models[self.stage.name] = self._weights(averaged=self._takes_average(result))
            over = watches and progress.attempts[self.number].is_over(self.patience)
            ends = epoch == self.epochs or over
            progress.report(self.learner, result, self.rank, ends=ends, watched=watches, send=self.shared.send)

    def _spread(self) -> tuple[float, float]:
        """Return the effective rank and the mean cosine of the vectors of evenly spaced known items."""
        known = self.learner.known
        places = np.linspace(0, len(known) - 1, min(len(known), SPREAD_ITEMS)).astype(np.int64)
        chosen = known[torch.from_numpy(places).to(known.device)]
        self.learner.model.eval()
        with torch.no_grad():
            return measure_spread(self.learner.catalogue.embed(self.learner.model, chosen).cpu())

    def _takes_average(self, result: EpochResult) -> bool:
        """Return whether to keep the averaged weights: they won validation here or in the stage that is repeated."""
        if self.stage.name == LEARN:
            return result.averaged
        best = self.progress.best_epoch
        return not self.from_best and best > 0 and self.progress.epochs[best - 1].averaged

    def _weights(self, *, averaged: bool) -> dict[str, torch.Tensor]:
        """Return the weights for inference: items without any positive get the row of the unknown item."""
        weights = self.progress.average if averaged else self.learner.model.state_dict()
        weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        share_unknown_row(weights, self.learner.untrained_rows)
        return weights

    def _seed(self, epoch: int) -> None:
        """Seed the random numbers of an epoch independently of earlier epochs, so that a stopped run can resume."""
        seed = (self.plan.train.seed * 1000 + self._place()) * 100_000 + epoch * 100 + self.rank
        torch.manual_seed(seed)
        self.learner.negatives.manual_seed(seed + 1_000_003)

    def _place(self) -> int:
        """Return a number below 10 per stage; attempts share one, so that they differ in their settings only."""
        return 0 if self.stage.name == LEARN else self.number

    def _in_step(self, epoch: int) -> Iterator[TimelineBatch]:
        """Yield a worker's batches while every worker has one, because gradients are averaged at each step."""
        seed = (self.plan.train.seed * 10 + self._place()) * 1000 + epoch
        made = self.shard.batches(self.stage.max_split, self.plan.train.batch_size, seed, ahead=self.shared.ahead)
        batches = prefetched(made, self.learner.device)
        while True:
            batch = next(batches, None)
            if not self._agreed(int(batch is not None), dist.ReduceOp.MIN) or batch is None:
                return
            yield batch

    def _agreed(self, value: int, operation: Any) -> int:
        """Return the minimum or maximum over all workers."""
        if world_size() == 1:
            return value
        tensor = torch.tensor([value], device=self.shared.device)
        dist.all_reduce(tensor, op=operation)
        return int(tensor)

    def _average(self) -> None:
        """Add the weights after an epoch to their average, which may be the better model (Izmailov et al. 2018)."""
        share = self.plan.train.averaging
        if share < 1 and not self.from_best:
            self.progress.average_in(self.learner.model.state_dict(), share)

    def _validate(self) -> tuple[float, float, int]:
        """Return the sums of NDCG@10 with the weights and with their average, and the number of users."""
        watched = self.shard.watched
        if watched is None:
            return 0.0, 0.0, 0
        judged = functools.partial(
            self.learner.validation_ndcg,
            watched,
            np.arange(len(watched)),
            split=Split.VALIDATION,
            query=0,
            history_length=self.plan.history_length,
            exclude_seen=self.plan.exclude_seen,
        )
        plain, users = judged()
        # With one epoch the average equals the weights; skip the second validation.
        if not self.progress.average or self.progress.stage_epochs == 0:
            return plain, plain, users
        model = self.learner.model
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.progress.average)
        averaged, _ = judged()
        model.load_state_dict(weights)
        return plain, averaged, users


def _read_catalogue(plan: TrainingPlan, *, now: bool) -> Catalogue:
    table = pq.read_table(plan.catalogue_now if now else plan.catalogue, filesystem=plan.storage.filesystem)
    return Catalogue.from_table(table, plan.item_shape)


def _summed(values: Array, device: torch.device) -> Array:
    """Return the sums over all workers."""
    if world_size() == 1:
        return values
    return _summed_tensor(torch.from_numpy(values), device).numpy()


def _summed_tensor(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the sums over all workers, on the CPU."""
    if world_size() > 1:
        values = values.to(device)
        dist.all_reduce(values)
    return values.cpu()
