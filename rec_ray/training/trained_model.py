"""Towers of a finished training as bundles, with the curves and the choice of the attempt.

Input: the progress of a training and its plan. Output: a `TrainedModel`. The module uses no Ray, so that a training in
the process of the caller gives the same bundle as one with Ray Train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rec_ray.contracts import TrainedModel, TrainingFacts
from rec_ray.errors import RecRayError
from rec_ray.logs import LOGGER
from rec_ray.retrieval.features.preprocessing import Preprocessor
from rec_ray.retrieval.learning.attempts import describe_attempts
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower
from rec_ray.training.checkpoint import AttemptRecord, Progress
from rec_ray.training.worker import CHECK, LEARN, PUBLISH, TrainingPlan


def tower_arguments(preprocessor: Preprocessor, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `build_two_tower`. architecture: the settings of section `model`, without the history."""
    return {
        "vocabulary_size": preprocessor.vocabulary_size,
        "item_shape": asdict(preprocessor.items.shape),
        "user_shape": asdict(preprocessor.users.shape),
        "event_types": len(preprocessor.event_types) + 1,
        **architecture,
    }


def build_trained_model(
    progress: Progress, plan: TrainingPlan, preprocessor: Preprocessor, metadata: Mapping[str, Any], *, warm_start: str
) -> TrainedModel:
    """Return the towers of all stages. warm_start: live or off, stored with the bundle.

    Raises:
        RecRayError: the training has no finished epoch.
    """
    if not progress.attempts:
        raise RecRayError("training ended without a checkpoint")
    chosen = progress.attempts[progress.chosen]
    arguments = {**plan.arguments, "history": chosen.attempt.history}

    def towers(stage: str) -> TwoTower | None:
        if stage not in progress.models:
            return None
        built = build_two_tower(**arguments)
        built.load_state_dict(progress.models[stage])
        return built.eval()

    learned = towers(LEARN)
    if learned is None:
        raise RecRayError("training ended without a checkpoint")
    epochs = tuple(progress.epochs)
    curves = {"epochs": [asdict(epoch) for epoch in epochs], "best_epoch": progress.best_epoch}
    refit = {"refit": plan.train.refit, "warm_start": warm_start}
    how = _describe(progress, chosen, plan.items)
    bundle = TwoTowerBundle(learned, arguments, preprocessor, {**metadata, **curves, **refit, "training": how})
    checked, published = towers(CHECK), towers(PUBLISH)
    return TrainedModel(
        bundle=bundle,
        epochs=epochs,
        best_epoch=progress.best_epoch,
        facts=TrainingFacts(progress.steps, progress.seconds_to_first_step, **how),
        checked=None if checked is None else TwoTowerBundle(checked, arguments, preprocessor, bundle.metadata),
        published=bundle
        if published is None
        else TwoTowerBundle(published, arguments, preprocessor, bundle.metadata, evaluated=learned),
    )


def _describe(progress: Progress, chosen: AttemptRecord, items: int) -> dict[str, Any]:
    """Return the attempts and the figures of the chosen one, for the bundle, the log and the report.

    nothing_learned: one sentence if the chosen attempt collapsed, else None.
    """
    attempts = [
        {
            "history": record.attempt.history,
            "careful": record.attempt.careful,
            "epochs": len(record.epochs),
            "best_epoch": record.best_epoch,
            "validation_ndcg": record.best.validation_ndcg if record.best is not None else 0.0,
            "seconds": round(sum(epoch.seconds for epoch in record.epochs), 1),
            "collapsed": record.has_collapsed(items),
        }
        for record in progress.attempts
    ]
    nothing = None
    if chosen.has_collapsed(items):
        nothing = f"the model learned nothing beyond popularity ({chosen.describe_collapse()})"
        LOGGER.warning("%s; check the events and features with `rec-ray doctor`", nothing)
    elif len(attempts) > 1:
        LOGGER.info("history %s chosen: validation NDCG@10 %s", chosen.attempt.history, describe_attempts(attempts))
    best = chosen.best
    return {
        "history": chosen.attempt.history,
        "reason": progress.reason,
        "attempts": attempts,
        "effective_rank": round(best.effective_rank, 2) if best is not None else None,
        "mean_cosine": round(best.mean_cosine, 4) if best is not None else None,
        "nothing_learned": nothing,
    }
