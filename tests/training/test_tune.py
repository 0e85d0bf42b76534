"""A search tries the project's own settings too, and ranks the trials."""

import pytest

from rec_ray.config import EvaluationSettings, ModelSettings, RaySettings, TrainSettings, TuneSettings
from rec_ray.storage.object_store import open_storage

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]


def test_a_search_finds_the_rate_that_learns(tiny_data, tmp_path):
    from rec_ray.training.tune import TrainingInputs, tune_settings

    storage = open_storage(str(tmp_path))
    inputs = TrainingInputs(
        tiny_data.data,
        ModelSettings(history="mean", embedding_size=16),
        # At this rate a training stays where it started.
        TrainSettings(epochs=2, learning_rate=1e-9, batch_size=64, uniform_negatives=20, max_failures=0),
        RaySettings(),
        EvaluationSettings(),
        True,
        storage,
    )
    settings = TuneSettings(minutes=5, trials=3, space={"train.learning_rate": [0.03], "model.dropout": [0.0]})
    trials = tune_settings(inputs, settings, name="search")
    assert len(trials) == 3
    assert [trial.validation_ndcg for trial in trials] == sorted((t.validation_ndcg for t in trials), reverse=True)
    (own,) = [trial for trial in trials if not trial.settings]
    assert trials[0].settings["train.learning_rate"] == 0.03
    assert trials[0].validation_ndcg > own.validation_ndcg and trials[0].seconds > 0
    assert all(1 <= trial.epochs <= 2 for trial in trials)
