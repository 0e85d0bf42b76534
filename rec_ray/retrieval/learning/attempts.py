"""Attempts of a training: the histories to try, and tests for the start of learning and for a collapse.

Input: settings and figures of epochs. Output: a list of attempts and verdicts about them. The training loop runs the
attempts and keeps the one with the best validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rec_ray.retrieval.features.event_order import EventOrder
from rec_ray.retrieval.learning.learner import MOST_WARMUP

if TYPE_CHECKING:
    from rec_ray.config.training import TrainSettings

SMALL_EVENTS = 100_000
"""Maximum number of training positives with which both histories are tried, because a second one costs little."""
CAREFUL_RATE = 1 / 3
"""Learning rate of the careful attempt as a share of the setting."""
BEGUN = 0.99
"""Share of the loss at chance below which a training has begun to learn."""
COLLAPSED_COSINE, FEW_ITEMS = 0.95, 8
"""Mean cosine of item vectors from which the model counts as collapsed; minimum number of items for this test."""
SPREAD_ITEMS = 4096
"""Maximum number of items whose vectors a training measures after each epoch."""


@dataclass(frozen=True)
class Attempt:
    """One training from the start. careful: with a lower learning rate and the longest warm-up, after a collapse."""

    history: str
    careful: bool = False

    def adapt(self, settings: TrainSettings) -> TrainSettings:
        """Return the settings of this attempt."""
        if not self.careful:
            return settings
        careful = {"learning_rate": settings.learning_rate * CAREFUL_RATE, "warmup": MOST_WARMUP}
        return settings.model_copy(update=careful)


def plan_attempts(
    history: str, positives: int, *, validated: bool, order: EventOrder | None
) -> tuple[list[Attempt], str]:
    """Return the attempts for the setting `model.history`, and the reason in one sentence.

    history: auto, none, mean or transformer. positives: number of training positives. validated: whether there are
    validation events for the choice. order: measured for auto, else None.
    """
    if history != "auto":
        return [Attempt(history)], f"model.history is set to {history}"
    if order is None:
        raise ValueError("history 'auto' needs the measured order of events")
    if validated and positives <= SMALL_EVENTS:
        return (
            [Attempt("mean"), Attempt("transformer")],
            f"{positives:,} training positives are few enough to try both histories; validation NDCG@10 chooses",
        )
    chosen = "transformer" if order.matters else "mean"
    return [Attempt(chosen)], f"{order.describe()}, so the history is read by {chosen}"


def careful_attempt(history: str) -> Attempt:
    """Return the attempt after a collapse. history: value of the setting; auto and transformer fall back to mean."""
    return Attempt("none" if history == "none" else "mean" if history == "auto" else history, careful=True)


def has_begun(loss: float, chance: float) -> bool:
    """Return whether a mean loss is below that of a popularity-only model. chance 0: unknown, so True."""
    return chance <= 0 or loss < BEGUN * chance


def is_collapsed(*, begun: bool, mean_cosine: float, items: int) -> bool:
    """Return whether an attempt learned nothing, or its item vectors are nearly identical."""
    return not begun or (items >= FEW_ITEMS and mean_cosine >= COLLAPSED_COSINE)


@torch.no_grad()
def measure_spread(vectors: Tensor) -> tuple[float, float]:
    """Return the effective rank of item vectors and the mean cosine of two different ones.

    The effective rank is the exponential of the entropy of the normalised squared singular values (Roy & Vetterli
    2007).

    vectors: [n, d].
    """
    if len(vectors) < 2:
        return float(len(vectors)), 0.0
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    energy = torch.linalg.eigvalsh(unit.T @ unit).clamp(min=0)
    share = energy / energy.sum().clamp(min=1e-12)
    rank = float(torch.exp(-torch.special.xlogy(share, share).sum()))
    count = len(unit)
    cosine = float((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1)))
    return rank, cosine


def describe_attempts(attempts: list[dict[str, Any]]) -> str:
    """Return one line about several attempts: history and best validation NDCG@10 of each."""
    return ", ".join(
        f"{one['history']}{' (careful)' if one['careful'] else ''} {one['validation_ndcg']:.4f}" for one in attempts
    )
