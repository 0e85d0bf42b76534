"""Decides the features of a run with `features: auto` when it starts, as `rec-ray init --feast` decides them once.

Input: an open store and the settings. Output: a record of the decisions, which the ledger of the run keeps, and the
settings with them. Features, types and values that the settings declare stay unchanged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rec_ray.config import FeatureSettings, InteractionSettings, Settings
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.registry import read_registry
from rec_ray.logs import LOGGER
from rec_ray.sample.feast_features import decide_roles
from rec_ray.sample.feast_layout import LayoutOptions

MEANING = ("type_field", "value_field", "negative_types", "min_positive_value")
"""Settings of the events that belong together: a section that sets one of them is not completed."""


@dataclass(frozen=True)
class DecidedFeatures:
    """Values of section `features`, and a line for each decision with its reason."""

    values: dict[str, Any]
    lines: tuple[str, ...]


def decide_run_features(store: FeatureStore, settings: Settings) -> DecidedFeatures:
    """Decide from samples of the rows and log each decision.

    Raises:
        As `decide_roles`.
    """
    with tempfile.TemporaryDirectory(prefix="rec_ray_") as scratch:
        values, _, choices = decide_roles(store, read_registry(store), settings.feast, LayoutOptions(), Path(scratch))
    lines = tuple(f"{choice.what}: {choice.decision} ({choice.why})" for choice in choices)
    for line in lines:
        LOGGER.info("features: auto: %s", line)
    return DecidedFeatures(values, lines)


def with_decisions(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return settings completed with decided values of section `features`."""
    given = settings.features
    kept = given.model_dump(exclude_unset=True, exclude={"interaction"})
    kept = {name: value for name, value in kept.items() if value or name not in ("user", "item", "item_name")}
    meaning = given.interaction.model_dump(exclude_unset=True)
    if not set(MEANING) & set(meaning):
        meaning |= {name: values["interaction"].get(name) for name in MEANING if name in values["interaction"]}
    meaning.setdefault("type_field", None)
    features = FeatureSettings.model_validate({**values, **kept, "interaction": meaning})
    return settings.model_copy(update={"features": features})


def without_decisions(settings: Settings) -> Settings:
    """Return settings in which an undecided type of the events is none, for checks before the decisions."""
    given = settings.features
    if not given.auto or "type_field" in given.interaction.model_fields_set:
        return settings
    meaning: InteractionSettings = given.interaction.model_copy(update={"type_field": None})
    return settings.model_copy(update={"features": given.model_copy(update={"interaction": meaning})})
