"""What each worker of Ray Train does: read its shard, learn epoch by epoch, and refit what will be published.

A `TrainingPlan` comes in, which says where the encoded timelines lie; checkpoints go out, one an epoch, from which a
lost worker, or the same run started again, goes on with the same batches in the same order and the same random numbers.
It knows nothing of Feast, raw ids, who started it or what is done with the model.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from rec_ray.config import TrainSettings
from rec_ray.contracts import TEST, VALIDATION, EpochResult
from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import TimelineBatch
from rec_ray.retrieval.learning.gradients import world_size
from rec_ray.retrieval.learning.learner import Learner, LearningSettings
from rec_ray.retrieval.learning.prefetch import prefetched
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower
from rec_ray.retrieval.model.warm_start import load_start, share_unknown_row
from rec_ray.storage.object_store import Storage
from rec_ray.training.checkpoint import Progress
from rec_ray.training.shard import Shard

REFIT_RATE = 0.5
"""Peak learning rate of `refit: continue`, as a share of that of the training. Beauty, four passes: test Recall@10
.1033 at a third, .1046 at a half, .1042 at the whole of it (one run each, from the same weights)."""

LEARN, CHECK, PUBLISH = "learn", "check", "publish"
"""The stages of a training, in this order: what is evaluated; the same refitted with the validation events, to measure
what refitting is worth; the same refitted with all events, for publishing."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TrainingPlan:
    """All that a worker needs.

    timelines, catalogue, catalogue_now: folders; the catalogues, of so many `items`, are as of the test cut-off and as
    of now. start: key of the weights to begin with, as `warm_start.carry_over` lays them out, or None. started: when
    the training was asked for, seconds since 1970.
    """

    arguments: dict[str, Any]
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
    """A part of a training. below: events labelled so or later are not learned from."""

    name: str
    max_split: int


def stages_of(train: TrainSettings) -> list[Stage]:
    """Return the stages that the settings ask for, in order."""
    learn = Stage(LEARN, VALIDATION)
    if train.refit == "off":
        return [learn]
    check = [Stage(CHECK, TEST)] if train.refit_check else []
    return [learn, *check, Stage(PUBLISH, TEST + 1)]


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Do all stages of the plan in `config["plan"]`, from the checkpoint of the run if there is one."""
    plan: TrainingPlan = config["plan"]
    context = ray.train.get_context()
    world, rank = context.get_world_size(), context.get_world_rank()
    # A thread more than there are free cores makes OpenMP spin: measured 10 times slower.
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
    positives = _summed(shard.positives)
    progress = Progress.load()
    for number, stage in enumerate(stages_of(plan.train)):
        if stage.name in progress.finished:
            continue
        worker = _Worker(plan, stage, number, shard, positives, progress, rank, world)
        worker.learn()


class _Worker:
    """One stage on one worker."""

    def __init__(
        self,
        plan: TrainingPlan,
        stage: Stage,
        number: int,
        shard: Shard,
        positives: Array,
        progress: Progress,
        rank: int,
        world: int,
    ) -> None:
        """positives: [3, items + 1] of all workers, as in `Shard`."""
        self.plan, self.stage, self.number, self.shard, self.progress = plan, stage, number, shard, progress
        self.rank, self.world = rank, world
        train = plan.train
        self.from_best = stage.name != LEARN and train.refit == "continue"
        self.epochs = train.epochs
        if stage.name != LEARN:
            self.epochs = train.refit_epochs if self.from_best else progress.best_epoch
        events = shard.events[stage.max_split]
        steps = _agreed(max(1, -(-events // train.batch_size)), dist.ReduceOp.MAX)
        # A full refit repeats the schedule of the training up to its best epoch.
        scheduled = self.epochs if self.from_best else train.epochs
        names = LearningSettings.__dataclass_fields__
        settings = LearningSettings(**{name: getattr(train, name) for name in names})
        if self.from_best:
            settings = dataclasses.replace(settings, learning_rate=settings.learning_rate * REFIT_RATE)
        model, known_rows = self._first_model()
        catalogue = _read_catalogue(plan, now=stage.name == PUBLISH)
        self.learner = Learner(
            model,
            dataclasses.replace(catalogue, count=positives[: stage.max_split].sum(axis=0)),
            settings,
            total_steps=steps * scheduled,
            device=ray.train.torch.get_device(),
            known_rows=known_rows,
        )
        if progress.stage == stage.name and progress.stage_epochs:
            progress.restore(self.learner)

    def _first_model(self) -> tuple[TwoTower, torch.Tensor | None]:
        """Return the towers to begin with and which rows of item ids an earlier version had learned."""
        # Towers start equal on all workers; dropout and negatives must not: see `_seed`.
        torch.manual_seed(self.plan.train.seed)
        model, known_rows = build_two_tower(**self.plan.arguments), None
        if self.plan.start is not None:
            known_rows = load_start(self.plan.storage.read_bytes(self.plan.start), model)
        if self.from_best:
            model.load_state_dict(self.progress.models[LEARN])
        return model, known_rows

    def learn(self) -> None:
        """Learn until the epochs of the stage are over or, where a validation is watched, it stops getting better."""
        progress, watches = self.progress, self.stage.name == LEARN
        progress.begin(self.stage.name)
        over = watches and progress.is_over(self.plan.train.patience)
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
            self._average()
            plain, averaged, users = self._validate() if watches else (0.0, 0.0, 0)
            sums = _summed(np.array([plain, averaged, users, positives], np.float64)).tolist()
            result = EpochResult(
                epoch=epoch,
                loss=float(np.mean(losses)) if losses else 0.0,
                validation_ndcg=max(sums[:2]) / sums[2] if sums[2] else 0.0,
                seconds=seconds,
                examples_per_second=sums[3] / seconds,
                averaged=sums[1] > sums[0],
            )
            improved = progress.add(result, watched=sums[2] > 0) if watches else epoch == self.epochs
            if improved:
                progress.models[self.stage.name] = self._weights(averaged=self._takes_average(result))
            over = watches and progress.is_over(self.plan.train.patience)
            progress.report(self.learner, result, self.rank, ends=epoch == self.epochs or over)

    def _takes_average(self, result: EpochResult) -> bool:
        """Whether what this stage gives is the average: where that was better, or was in the stage it repeats."""
        if self.stage.name == LEARN:
            return result.averaged
        best = self.progress.best_epoch
        return not self.from_best and best > 0 and self.progress.epochs[best - 1].averaged

    def _weights(self, *, averaged: bool) -> dict[str, torch.Tensor]:
        """Return the weights as they will be used: items that nothing was learned about have the unknown one's row."""
        weights = self.progress.average if averaged else self.learner.model.state_dict()
        weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        share_unknown_row(weights, self.learner.untrained_rows)
        return weights

    def _seed(self, epoch: int) -> None:
        """Let the random numbers of an epoch depend on nothing before it, so that a run can go on where it stopped."""
        seed = (self.plan.train.seed * 1000 + self.number) * 100_000 + epoch * 100 + self.rank
        torch.manual_seed(seed)
        self.learner.negatives.manual_seed(seed + 1_000_003)

    def _in_step(self, epoch: int) -> Iterator[TimelineBatch]:
        """Yield a worker's batches as long as every worker has one: gradients are averaged at each step."""
        seed = (self.plan.train.seed * 10 + self.number) * 1000 + epoch
        made = self.shard.batches(self.stage.max_split, self.plan.train.batch_size, seed)
        batches = prefetched(made, self.learner.device)
        while True:
            batch = next(batches, None)
            if self.world > 1 and not _agreed(int(batch is not None), dist.ReduceOp.MIN):
                return
            if batch is None:
                return
            yield batch

    def _average(self) -> None:
        """Count the weights after an epoch into their average, which may be the better model (Izmailov et al. 2018)."""
        share = self.plan.train.averaging
        if share < 1 and not self.from_best:
            self.progress.average_in(self.learner.model.state_dict(), share)

    def _validate(self) -> tuple[float, float, int]:
        """Return the sums of NDCG@10 by the weights and by their average, and of how many users."""
        watched = self.shard.watched
        if watched is None:
            return 0.0, 0.0, 0
        judged = functools.partial(
            self.learner.validation_ndcg,
            watched,
            np.arange(len(watched)),
            split=VALIDATION,
            query=0,
            history_length=self.plan.history_length,
            exclude_seen=self.plan.exclude_seen,
        )
        plain, users = judged()
        # After one epoch the average is what it is an average of.
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


def _agreed(value: int, operation: Any) -> int:
    """Return the least or the largest value of all workers."""
    if world_size() == 1:
        return value
    tensor = torch.tensor([value], device=ray.train.torch.get_device())
    dist.all_reduce(tensor, op=operation)
    return int(tensor)


def _summed(values: Array) -> Array:
    """Return the sums over all workers."""
    if world_size() == 1:
        return values
    tensor = torch.from_numpy(values).to(ray.train.torch.get_device())
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()
