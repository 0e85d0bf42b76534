"""Search for better settings with Ray Tune: random trials, the weak ones stopped early (ASHA, Li et al. 2020).

Input: encoded training data and a space of settings. Output: the trials, best first. Each trial is a training on one
worker, without a refit, judged by the validation NDCG@10 of its best epoch; the test events are not used. A search of
the same name resumes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray.tune
import torch
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from rec_ray.config import EvaluationSettings, ModelSettings, RaySettings, TrainSettings
from rec_ray.config.tuning import SECTIONS, TuneSettings
from rec_ray.contracts import TrainingData, Trial
from rec_ray.errors import RecRayError
from rec_ray.logs import LOGGER
from rec_ray.storage.object_store import Storage
from rec_ray.training.checkpoint import Progress
from rec_ray.training.trainer import TRAINING_FOLDER, plan_training
from rec_ray.training.worker import train_stages

METRIC = "validation_ndcg@10"
GRACE_EPOCHS, REDUCTION = 2, 3
"""Epochs that every trial gets; share of trials that continue at each later check is one in `REDUCTION`."""


@dataclass(frozen=True)
class TrainingInputs:
    """Everything of a training but the settings that are tried; arguments as in `train_two_tower`."""

    data: TrainingData
    model: ModelSettings
    train: TrainSettings
    ray: RaySettings
    evaluation: EvaluationSettings
    exclude_seen: bool
    storage: Storage


def tune_settings(inputs: TrainingInputs, settings: TuneSettings, *, name: str) -> list[Trial]:
    """Try settings until the time is over and return the trials, the best one first; the project's own are one of them.

    name: of the search, which resumes after a failure.

    Raises:
        RecRayError: no trial has finished an epoch.
    """
    # Only the older output of Ray Tune (2.60) is silent with `verbose=0`.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    own = _own_values(inputs, settings.space)
    folder = inputs.storage.path(f"{TRAINING_FOLDER}/{name}")
    resources = {"CPU": inputs.train.cpus_per_worker} | ({"GPU": 1} if inputs.train.use_gpu else {})
    trainable = ray.tune.with_resources(ray.tune.with_parameters(_try, inputs=inputs), resources)
    if ray.tune.Tuner.can_restore(folder, storage_filesystem=inputs.storage.filesystem):
        LOGGER.info("the search continues with the trials of an earlier attempt")
        tuner = ray.tune.Tuner.restore(
            folder, trainable, resume_errored=True, storage_filesystem=inputs.storage.filesystem
        )
    else:
        tuner = ray.tune.Tuner(
            trainable,
            # The project's own values belong to the space: Ray Tune warns of others in `points_to_evaluate`.
            param_space={
                key: ray.tune.choice(values if own[key] in values else [own[key], *values])
                for key, values in settings.space.items()
            },
            tune_config=ray.tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=settings.trials,
                time_budget_s=settings.minutes * 60,
                search_alg=BasicVariantGenerator(
                    points_to_evaluate=[own],
                    random_state=inputs.train.seed,
                ),
                scheduler=ASHAScheduler(
                    max_t=inputs.train.passes(1), grace_period=GRACE_EPOCHS, reduction_factor=REDUCTION
                ),
                reuse_actors=False,
            ),
            run_config=ray.tune.RunConfig(
                name=name,
                storage_path=inputs.storage.path(TRAINING_FOLDER),
                storage_filesystem=inputs.storage.filesystem,
                callbacks=[_LogTrials()],
                verbose=0,
            ),
        )
    return _rank(_fit(tuner), own)


def _own_values(inputs: TrainingInputs, space: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return the project's values of the settings of the space, by full name."""
    sections = {"model": inputs.model, "train": inputs.train}
    return {key: getattr(sections[key.partition(".")[0]], key.partition(".")[2]) for key in space}


def _try(config: dict[str, Any], inputs: TrainingInputs) -> None:
    """Train once with some settings in this process of Ray Tune, to which each epoch is reported."""
    changed: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, value in config.items():
        section, _, field = key.partition(".")
        changed[section][field] = value
    model = ModelSettings.model_validate({**inputs.model.model_dump(), **changed["model"]})
    train = TrainSettings.model_validate({**inputs.train.model_dump(), **changed["train"], "refit": "off"})
    plan = plan_training(
        inputs.data,
        model,
        train,
        inputs.ray,
        inputs.storage,
        inputs.evaluation.validation_users,
        exclude_seen=inputs.exclude_seen,
    )
    device = torch.device("cuda" if train.use_gpu else "cpu")
    train_stages(plan, Progress(), rank=0, world=1, device=device, send=_report)


def _report(metrics: dict[str, Any], folder: str | None) -> None:
    """Report an epoch; its checkpoint is not kept, because a trial that was lost starts again."""
    ray.tune.report(metrics)


class _LogTrials(ray.tune.Callback):
    """Logs the end of each trial."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log the result of a trial and the best one so far."""
        done = [each for each in trials if each.is_finished()]
        best = max((_best(each.metric_analysis) for each in trials), default=0.0)
        LOGGER.info(
            "trial %d of %.0f s: validation NDCG@10 %.4f, best so far %.4f",
            len(done),
            trial.last_result.get("time_total_s", 0.0),
            _best(trial.metric_analysis),
            best,
        )


def _best(analysis: Mapping[str, Mapping[str, float]]) -> float:
    return float(analysis.get(METRIC, {}).get("max", 0.0))


def _fit(tuner: ray.tune.Tuner) -> ray.tune.ResultGrid:
    """Fit in a thread, because in the main thread Ray Tune handles Ctrl-C itself and continues until trials end."""
    outcome: Future[ray.tune.ResultGrid] = Future()

    def fit() -> None:
        try:
            outcome.set_result(tuner.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fit, name="ray-tune", daemon=True).start()
    return outcome.result()


def _rank(results: ray.tune.ResultGrid, own: Mapping[str, Any]) -> list[Trial]:
    trials = []
    for result in results:
        course = result.metrics_dataframe
        if course is None or METRIC not in course:
            continue
        trials.append(
            Trial(
                settings={key: value for key, value in (result.config or {}).items() if value != own[key]},
                validation_ndcg=float(course[METRIC].max()),
                epochs=len(course),
                seconds=float(course["time_total_s"].max()),
                stopped=not (result.metrics or {}).get("done", False),
            )
        )
    if not trials:
        failures = [str(error).strip().splitlines()[-1] for error in results.errors]
        raise RecRayError(f"no trial finished an epoch: {failures[0] if failures else 'tune.minutes is too short'}")
    return sorted(trials, key=lambda trial: -trial.validation_ndcg)
