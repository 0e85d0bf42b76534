"""Settings of a search: only settings of model and train, with values that these take."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rec_ray.config import Settings, TuneSettings, deciding_settings
from rec_ray.config.tuning import USUAL_SPACE


def test_the_usual_space_is_valid_and_contains_the_defaults() -> None:
    settings = Settings()
    assert TuneSettings().space == USUAL_SPACE
    for name, values in USUAL_SPACE.items():
        section, key = name.split(".")
        if name != "model.history":
            assert getattr(getattr(settings, section), key) in values, name


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"candidates.k": [10]}, "expected settings such as model.dropout or train.batch_size, found 'candidates.k'"),
        ({"model.dropuot": [0.1]}, "found 'model.dropuot'"),
        ({"model.dropout": []}, "model.dropout has no value to try"),
        ({"model.dropout": [0.1, 1.5]}, "model.dropout: 1.5 is no value of it"),
    ],
)
def test_other_settings_and_values_are_refused(space: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TuneSettings(space=space)


def test_a_run_is_the_same_with_another_search() -> None:
    one, two = Settings(), Settings(tune=TuneSettings(minutes=5))
    assert deciding_settings(one) == deciding_settings(two)
