"""Training with Ray Train: trains on `TrainingData` and returns the best epoch as a `TrainedModel`.

Each worker reads its own rows of the encoded timelines and runs `worker.train_loop_per_worker`; the weights of each
stage are read from the last checkpoint as bundles. The module uses neither Feast nor raw ids.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from rec_ray.config import ModelSettings, RaySettings, TrainSettings
from rec_ray.contracts import TrainedModel, TrainingData
from rec_ray.errors import DataError, RecRayError, StorageError
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.warm_start import carry_over
from rec_ray.storage.object_store import Storage
from rec_ray.training.checkpoint import Progress
from rec_ray.training.trained_model import build_trained_model, tower_arguments
from rec_ray.training.worker import TrainingPlan, train_loop_per_worker

TRAINING_FOLDER = "training"
POLL_SECONDS = 0.25
"""Poll interval of Ray Train's controller in seconds; workers wait for a poll after each epoch (Ray's default: 2)."""


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
    live: TwoTowerBundle | None = None,
) -> TrainedModel:
    """Train until the last epoch or until validation NDCG@10 no longer rises, keep the best towers, and refit them.

    run_id: name of the training; a training of the same name resumes from its last checkpoint.
    metadata: stored with the bundle.
    callbacks: receive the reports of the workers after each epoch.
    live: version whose weights to begin with, for `train.warm_start: live`.

    Raises:
        BundleError: the towers of the live version have another architecture than the settings.
        DataError: the loss became infinite.
        RecRayError: the workers failed more often than `train.max_failures`.
    """
    plan = plan_training(data, model, train, ray_settings, storage, validation_users, exclude_seen=exclude_seen)
    if live is not None:
        if plan.history == "auto":
            # The weights of a warm start fit only the history encoder with which they were trained.
            plan = replace(plan, history=str(live.arguments["history"]))
        plan = replace(
            plan, start=_write_start(live, {**plan.arguments, "history": plan.history}, data, storage, run_id)
        )
    progress = _run(plan, train, storage, run_id, callbacks, local=ray_settings.address is None)
    return build_trained_model(
        progress, plan, data.preprocessor, metadata, warm_start="live" if live is not None else "off"
    )


def plan_training(
    data: TrainingData,
    model: ModelSettings,
    train: TrainSettings,
    ray_settings: RaySettings,
    storage: Storage,
    validation_users: int,
    *,
    exclude_seen: bool,
) -> TrainingPlan:
    """Return the input of the workers of a training that starts now, without weights of an earlier version."""
    preprocessor = data.preprocessor
    architecture = model.model_dump()
    history = architecture.pop("history")
    return TrainingPlan(
        arguments=tower_arguments(preprocessor, architecture),
        history=history,
        user_shape=preprocessor.users.shape,
        item_shape=preprocessor.items.shape,
        timelines=data.timelines,
        catalogue=data.catalogue,
        catalogue_now=data.catalogue_now,
        items=data.items,
        storage=storage,
        train=train,
        history_length=model.history_length,
        validation_users=validation_users,
        exclude_seen=exclude_seen,
        threads=ray_settings.threads,
        started=time.time(),
    )


def _write_start(
    live: TwoTowerBundle, arguments: dict[str, Any], data: TrainingData, storage: Storage, run_id: str
) -> str:
    """Store the initial weights for all workers of all attempts; return their key."""
    key = f"{TRAINING_FOLDER}/{run_id}/start.safetensors"
    storage.write_bytes(key, carry_over(live, arguments, data.preprocessor))
    return key


def _run(
    plan: TrainingPlan,
    train: TrainSettings,
    storage: Storage,
    run_id: str,
    callbacks: Sequence[ray.train.UserCallback],
    *,
    local: bool,
) -> Progress:
    """Run the workers and return their last checkpoint. local: on a local Ray that this process started."""
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            elastic_resize_monitor_interval_s=train.resize_seconds,
            use_gpu=train.use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=run_id,
            storage_path=storage.path(TRAINING_FOLDER),
            storage_filesystem=storage.filesystem,
            # By default Ray restarts a controller that cannot write, without end.
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
        ),
    )
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
    if local:
        # No node can be drained, and the process that would check this takes a second to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        result = _fit(trainer)
    except ray.train.TrainingFailedError as error:
        raise _foreseen(error) from error
    if result.checkpoint is None:
        raise RecRayError("training ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        return Progress.read(folder)


def _fit(trainer: TorchTrainer) -> ray.train.Result:
    """Fit in a thread: in the main thread Ray Train (2.60) handles Ctrl-C itself and ends the process with code 0."""
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    return outcome.result()


def _foreseen(error: ray.train.TrainingFailedError) -> RecRayError:
    """Return the error of a worker as a RecRayError; Ray Train (2.60) wraps it in an error with a traceback as text."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for failure in failures:
        raised = getattr(failure, "_base_exc", failure)
        if isinstance(raised, FloatingPointError):
            return DataError(str(raised))
        if isinstance(raised, RecRayError):
            return raised
        if isinstance(raised, OSError):
            return StorageError(f"training could not read or write the object store: {raised}; is the store running?")
    return RecRayError(f"training failed: {str(error).strip().splitlines()[-1]}")
