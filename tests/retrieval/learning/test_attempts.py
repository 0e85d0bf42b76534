"""Attempts: which histories are tried, and by which figures a training has begun or has collapsed."""

import pytest
import torch

from rec_ray.config import TrainSettings
from rec_ray.retrieval.features.event_order import EventOrder
from rec_ray.retrieval.learning.attempts import (
    SMALL_EVENTS,
    Attempt,
    careful_attempt,
    has_begun,
    is_collapsed,
    measure_spread,
    plan_attempts,
)

ORDERED, RANDOM = EventOrder(1000, 500, 100), EventOrder(1000, 100, 100)


def test_small_data_try_both_histories_and_larger_ones_follow_the_order_of_events() -> None:
    both = [Attempt("mean"), Attempt("transformer")]
    assert plan_attempts("auto", SMALL_EVENTS, validated=True, order=RANDOM)[0] == both
    for positives, validated in ((SMALL_EVENTS + 1, True), (10, False)):
        for order, history in ((ORDERED, "transformer"), (RANDOM, "mean")):
            attempts, reason = plan_attempts("auto", positives, validated=validated, order=order)
            assert attempts == [Attempt(history)]
            assert reason.endswith(f"the history is read by {history}")


@pytest.mark.parametrize("history", ["none", "mean", "transformer"])
def test_a_history_that_is_set_is_the_only_attempt_and_stays_after_a_collapse(history: str) -> None:
    assert plan_attempts(history, 10, validated=True, order=None)[0] == [Attempt(history)]
    assert careful_attempt(history) == Attempt(history, careful=True)


def test_a_careful_attempt_learns_slower_and_warms_up_longer() -> None:
    settings = TrainSettings()
    careful = careful_attempt("auto").adapt(settings)
    assert careful_attempt("auto").history == "mean"
    assert careful.learning_rate == pytest.approx(settings.learning_rate / 3) and careful.warmup == 0.3
    assert Attempt("mean").adapt(settings) == settings


def test_a_loss_has_begun_below_chance_by_a_hundredth() -> None:
    assert has_begun(4.9, 5.0) and not has_begun(4.96, 5.0) and not has_begun(6.0, 5.0)
    assert has_begun(4.9, 0.0), "without a known loss at chance nothing is held back"


def test_collapse_is_no_progress_or_one_vector_for_all_items() -> None:
    assert is_collapsed(begun=False, mean_cosine=0.1, items=100)
    assert is_collapsed(begun=True, mean_cosine=0.99, items=100)
    assert not is_collapsed(begun=True, mean_cosine=0.8, items=100)
    assert not is_collapsed(begun=True, mean_cosine=0.99, items=3), "three items may be alike"


def test_spread_of_vectors_by_hand() -> None:
    rank, cosine = measure_spread(torch.eye(6))
    assert (rank, cosine) == (pytest.approx(6), pytest.approx(0, abs=1e-9))
    rank, cosine = measure_spread(torch.ones(5, 3))
    assert (rank, cosine) == (pytest.approx(1), pytest.approx(1))
    # Cosines of 1 within each half and 0 between them: 2 of 3 others are unlike.
    rank, cosine = measure_spread(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0]]))
    assert (rank, cosine) == (pytest.approx(2), pytest.approx(1 / 3))
    assert measure_spread(torch.ones(1, 3)) == (1.0, 0.0)
