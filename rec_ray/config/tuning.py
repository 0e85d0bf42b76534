"""Settings of `rec-ray tune`: how long it searches, and the values that it tries.

Input: plain values. Output: a frozen section.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, model_validator

from rec_ray.config.model import ModelSettings
from rec_ray.config.section import Positive, Section
from rec_ray.config.training import TrainSettings

SECTIONS: dict[str, type[Section]] = {"model": ModelSettings, "train": TrainSettings}
"""Sections whose settings can be tried: the encoded data are the same for all their values."""

USUAL_SPACE: dict[str, list[Any]] = {
    "model.history": ["transformer", "mean"],
    "model.embedding_size": [64, 128],
    "model.layers": [1, 2, 3],
    "model.dropout": [0.1, 0.2, 0.35, 0.5],
    "model.id_dropout": [0.0, 0.1, 0.3],
    "train.learning_rate": [1e-3, 2e-3, 3e-3, 5e-3],
    "train.batch_size": [256, 512, 1024],
    "train.temperature": [0.05, 0.07, 0.1, 0.14],
    "train.uniform_negatives": [1024, 2048, 4096],
    "train.label_smoothing": [0.0, 0.1],
}


class TuneSettings(Section):
    """Search for better settings of model and train by `rec-ray tune`; a run does not read it."""

    minutes: Positive = Field(60, description="Time of the search.")
    trials: Positive = Field(100, description="Maximum number of trials; the first has the settings of the project.")
    space: dict[str, list[Any]] = Field(
        USUAL_SPACE, description="Setting of model or train -> values to try; others keep their value.", min_length=1
    )

    @model_validator(mode="after")
    def _can_be_tried(self) -> TuneSettings:
        for name, values in self.space.items():
            section, _, key = name.partition(".")
            if section not in SECTIONS or key not in SECTIONS[section].model_fields:
                raise ValueError(f"space: expected settings such as model.dropout or train.batch_size, found {name!r}")
            if not values:
                raise ValueError(f"space: {name} has no value to try; give some or remove the line")
            for value in values:
                try:
                    SECTIONS[section].model_validate({key: value})
                except ValidationError as error:
                    raise ValueError(
                        f"space: {name}: {value!r} is no value of it: {error.errors()[0]['msg']}"
                    ) from None
        return self
