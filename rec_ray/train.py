"""`TrainingData` into a `TrainedModel` with Ray Train: as many workers as asked for, the best epoch kept.

Encoded timelines stream to the workers through Ray Data, which splits them; each worker learns with
`retrieval.learning` and reports a checkpoint an epoch, from which a lost worker, or the same run started again, goes
on. It knows nothing of Feast, raw ids or what is done with the model.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file, save_file

from rec_ray.config import ModelSettings, RaySettings, TrainSettings
from rec_ray.contracts import VALIDATION, EpochResult, TrainedModel, TrainingData
from rec_ray.errors import DataError, RecRayError, StorageError
from rec_ray.logs import LOGGER
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.retrieval.catalogue import Catalogue
from rec_ray.retrieval.feature_batch import FeatureShape
from rec_ray.retrieval.learning import Learner, LearningSettings
from rec_ray.retrieval.timelines import Timelines, training_windows
from rec_ray.retrieval.towers import build_two_tower
from rec_ray.storage import Storage

STREAMED_TIMELINES = 20_000
"""Timelines that are shuffled among each other when a shard does not fit into the cache."""


@dataclass(frozen=True)
class _Plan:
    """All that a worker needs beside its shard of the timelines."""

    arguments: dict[str, Any]
    user_shape: FeatureShape
    item_shape: FeatureShape
    catalogue: str
    storage: Storage
    train: TrainSettings
    history_length: int
    validation_users: int
    exclude_seen: bool
    threads: int | None


def train_two_tower(
    data: TrainingData,
    model: ModelSettings,
    train: TrainSettings,
    ray_settings: RaySettings,
    storage: Storage,
    *,
    run_id: str,
    validation_users: int,
    exclude_seen: bool,
    metadata: dict[str, Any],
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> TrainedModel:
    """Train until the epochs are over or validation NDCG@10 no longer rises, and return the best epoch's towers.

    run_id: names the training; the same one goes on from its last checkpoint.
    metadata: stored with the bundle.
    callbacks: hear what the workers report after each epoch.

    Raises:
        DataError: the loss became infinite.
        RecRayError: the workers failed more often than `train.max_failures`.
    """
    preprocessor = data.preprocessor
    arguments = {
        "vocabulary_size": preprocessor.vocabulary_size,
        "item_shape": asdict(preprocessor.items.shape),
        "user_shape": asdict(preprocessor.users.shape),
        "event_types": len(preprocessor.event_types) + 1,
        **model.model_dump(),
    }
    plan = _Plan(
        arguments=arguments,
        user_shape=preprocessor.users.shape,
        item_shape=preprocessor.items.shape,
        catalogue=data.catalogue,
        storage=storage,
        train=train,
        history_length=model.history_length,
        validation_users=validation_users,
        exclude_seen=exclude_seen,
        threads=ray_settings.threads,
    )
    timelines = ray.data.read_parquet(data.timelines, filesystem=storage.filesystem)
    trainer = TorchTrainer(
        _train_loop_per_worker,
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=run_id,
            storage_path=storage.path("training"),
            storage_filesystem=storage.filesystem,
            # By itself Ray starts a controller that cannot write again for ever.
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
        ),
        datasets={"timelines": timelines},
        dataset_config=ray.train.DataConfig(
            execution_options=ray.data.ExecutionOptions(preserve_order=True), enable_shard_locality=False
        ),
    )
    try:
        result = _fit(trainer)
    except ray.train.TrainingFailedError as error:
        raise _foreseen(error) from error
    if result.checkpoint is None:
        raise RecRayError("training ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        state = json.loads((Path(folder) / "progress.json").read_text(encoding="utf-8"))
        towers = build_two_tower(**arguments)
        towers.load_state_dict(load_file(Path(folder) / "best.safetensors"))
    epochs = tuple(EpochResult(**epoch) for epoch in state["epochs"])
    towers.eval()
    bundle = TwoTowerBundle(
        model=towers,
        arguments=arguments,
        preprocessor=preprocessor,
        metadata={**metadata, "epochs": state["epochs"], "best_epoch": state["best_epoch"]},
    )
    return TrainedModel(bundle, epochs, state["best_epoch"], {"steps": state["steps"]})


def _fit(trainer: TorchTrainer) -> ray.train.Result:
    """Fit in a thread: in the main one Ray Train (2.60) takes Ctrl-C for itself and ends the process with code 0."""
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    return outcome.result()


def _foreseen(error: ray.train.TrainingFailedError) -> RecRayError:
    """Return what a worker raised as an error of ours; Ray Train (2.60) wraps it in one whose text is a traceback."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for failure in failures:
        raised = getattr(failure, "_base_exc", failure)
        if isinstance(raised, FloatingPointError):
            return DataError(str(raised))
        if isinstance(raised, RecRayError):
            return raised
        if isinstance(raised, OSError):
            return StorageError(f"training could not read or write the object store: {raised}; is it up?")
    return RecRayError(f"training failed: {str(error).strip().splitlines()[-1]}")


def _train_loop_per_worker(config: dict[str, Any]) -> None:
    plan: _Plan = config["plan"]
    context = ray.train.get_context()
    world, rank = context.get_world_size(), context.get_world_rank()
    # A thread more than there are free cores makes OpenMP spin: measured 10 times slower.
    torch.set_num_threads(plan.threads or plan.train.cpus_per_worker)
    torch.manual_seed(plan.train.seed)
    device = ray.train.torch.get_device()
    table = pq.read_table(plan.catalogue, filesystem=plan.storage.filesystem)
    catalogue = Catalogue.from_table(table, plan.item_shape)
    model = build_two_tower(**plan.arguments)
    shard = _Shard(ray.train.get_dataset_shard("timelines"), plan, world)
    events, validation = shard.prepare()
    settings = plan.train
    steps_per_epoch = _agreed(max(1, -(-events // settings.batch_size)), dist.ReduceOp.MAX)
    names = LearningSettings.__dataclass_fields__
    learner = Learner(
        model,
        catalogue,
        LearningSettings(**{name: getattr(settings, name) for name in names}),
        total_steps=steps_per_epoch * settings.epochs,
        device=device,
    )
    # Towers start equal on all workers; dropout and negatives must not.
    torch.manual_seed(settings.seed + 1000 * rank)
    progress = _Progress.load(learner)
    while progress.next_epoch <= settings.epochs and not progress.is_over(settings.patience):
        started = time.perf_counter()
        losses, positives = [], 0
        for batch in _in_step(learner, shard, progress.next_epoch, world):
            losses.append(learner.step(batch))
            positives += int((batch.weight > 0).sum())
        seconds = time.perf_counter() - started
        ndcg = 0.0
        if validation is not None:
            ndcg, users = learner.validation_ndcg(
                validation,
                np.arange(len(validation)),
                split=VALIDATION,
                query=0,
                history_length=plan.history_length,
                exclude_seen=plan.exclude_seen,
            )
        else:
            users = 0
        ndcg_sum, user_sum, positive_sum = _summed([ndcg, users, positives])
        progress.add(
            EpochResult(
                epoch=progress.next_epoch,
                loss=float(np.mean(losses)) if losses else 0.0,
                validation_ndcg=ndcg_sum / user_sum if user_sum else 0.0,
                seconds=seconds,
                examples_per_second=positive_sum / seconds,
            ),
            learner,
            watched=user_sum > 0,
        )
        progress.report(learner, rank)


def _in_step(learner: Learner, shard: _Shard, epoch: int, world: int) -> Iterator[Any]:
    """Yield a worker's batches as long as every worker has one: gradients are averaged at each step."""
    batches = shard.batches(learner, epoch)
    while True:
        batch = next(batches, None)
        if world > 1 and not _agreed(int(batch is not None), dist.ReduceOp.MIN):
            return
        if batch is None:
            return
        yield batch


class _Shard:
    """A worker's share of the timelines: in memory when it fits, else streamed in each epoch."""

    def __init__(self, iterator: ray.data.DataIterator, plan: _Plan, world: int) -> None:
        self.iterator, self.plan, self.world = iterator, plan, world
        self.cached: Timelines | None = None

    def prepare(self) -> tuple[int, Timelines | None]:
        """Read the shard once: count the events of its windows, keep users to validate on, and all of it if it fits."""
        kept, size, events = [], 0, 0
        watched, wanted = [], self.plan.validation_users // self.world
        for table in self._tables():
            timelines = self._timelines(table)
            events += int(training_windows(timelines, self.plan.history_length, VALIDATION).events.sum())
            _, first = timelines.positives(VALIDATION)
            users = np.flatnonzero(np.diff(first) > 0)[:wanted]
            if len(users):
                watched.append(table.take(pa.array(users)))
                wanted -= len(users)
            size += table.nbytes
            if size <= self.plan.train.cache_bytes:
                kept.append(table)
            else:
                kept.clear()
        if kept:
            # By id, so that the order does not depend on which block came first.
            self.cached = self._timelines(pa.concat_tables(kept).sort_by("user_id"))
        return events, self._timelines(pa.concat_tables(watched)) if watched else None

    def batches(self, learner: Learner, epoch: int) -> Iterator[Any]:
        if self.cached is not None:
            windows = training_windows(self.cached, self.plan.history_length, VALIDATION)
            yield from learner.batches(self.cached, windows, epoch)
            return
        for number, table in enumerate(self._tables()):
            timelines = self._timelines(table)
            windows = training_windows(timelines, self.plan.history_length, VALIDATION)
            yield from learner.batches(timelines, windows, epoch * 1_000_003 + number)

    def _tables(self) -> Iterator[pa.Table]:
        yield from self.iterator.iter_batches(batch_size=STREAMED_TIMELINES, batch_format="pyarrow", prefetch_batches=1)

    def _timelines(self, table: pa.Table) -> Timelines:
        return Timelines.from_table(table, self.plan.user_shape)


@dataclass
class _Progress:
    """How far a training is: what a checkpoint holds beside the weights."""

    epochs: list[EpochResult]
    best_epoch: int
    best: dict[str, torch.Tensor]

    @property
    def next_epoch(self) -> int:
        return len(self.epochs) + 1

    def is_over(self, patience: int) -> bool:
        return len(self.epochs) - self.best_epoch >= patience and bool(self.epochs)

    def add(self, epoch: EpochResult, learner: Learner, *, watched: bool) -> None:
        """Add an epoch and keep its weights if they are the best; without validation users the last is the best."""
        self.epochs.append(epoch)
        best = self.epochs[self.best_epoch - 1].validation_ndcg if self.best_epoch else -1.0
        if not watched or epoch.validation_ndcg > best:
            self.best_epoch = epoch.epoch
            self.best = {name: value.detach().cpu().clone() for name, value in learner.model.state_dict().items()}

    def report(self, learner: Learner, rank: int) -> None:
        """Report the epoch; the first worker writes the checkpoint."""
        last = self.epochs[-1]
        metrics = {"epoch": last.epoch, "loss": last.loss, "validation_ndcg@10": last.validation_ndcg}
        if rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_file(self.best, Path(folder) / "best.safetensors")
            state = {f"model.{name}": value.contiguous() for name, value in learner.model.state_dict().items()}
            for kind, optimizer in (("dense", learner.dense), ("tables", learner.tables)):
                for index, entries in optimizer.state_dict()["state"].items():
                    state |= {f"{kind}.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
            save_file(state, Path(folder) / "state.safetensors")
            progress = {
                "epochs": [asdict(epoch) for epoch in self.epochs],
                "best_epoch": self.best_epoch,
                "steps": learner.steps,
            }
            (Path(folder) / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    @classmethod
    def load(cls, learner: Learner) -> _Progress:
        """Go on from the checkpoint of this run, or begin."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return cls([], 0, {})
        with checkpoint.as_directory() as folder:
            progress = json.loads((Path(folder) / "progress.json").read_text(encoding="utf-8"))
            best = load_file(Path(folder) / "best.safetensors")
            state = load_file(Path(folder) / "state.safetensors")
        learner.steps = progress["steps"]
        learner.model.load_state_dict(_below(state, "model."))
        for kind, optimizer in (("dense", learner.dense), ("tables", learner.tables)):
            entries: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in _below(state, f"{kind}.").items():
                index, key = name.split(".", 1)
                entries.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        LOGGER.info("training goes on after epoch %d", len(progress["epochs"]))
        return cls([EpochResult(**epoch) for epoch in progress["epochs"]], progress["best_epoch"], best)


def _below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _agreed(value: int, operation: Any) -> int:
    """Return the least or the largest value of all workers."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    tensor = torch.tensor([value], device=ray.train.torch.get_device())
    dist.all_reduce(tensor, op=operation)
    return int(tensor)


def _summed(values: list[float]) -> list[float]:
    """Return the sums over all workers."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=ray.train.torch.get_device())
    dist.all_reduce(tensor)
    return [float(value) for value in tensor]
