"""Settings with `features: auto`, completed with decided features, or with those decided for a stored model.

Input: settings, and decided values of section `features`. Output: settings in which the decisions are declared. What
the settings declare themselves stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec_ray.config import FeatureSettings, Settings

DECIDED = ("user", "item", "item_name")
MEANING = ("type_field", "value_field", "negative_types", "min_positive_value")
"""Settings of the events that belong together: a section that sets one of them is not completed."""


def with_decisions(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return settings completed with decided values; other values of section `features` are ignored."""
    given = settings.features.model_dump(exclude_unset=True, exclude={"interaction"})
    decided = {name: values[name] for name in DECIDED if name in values and not given.get(name)}
    meaning = settings.features.interaction.model_dump(exclude_unset=True)
    if not set(MEANING) & set(meaning):
        meaning |= {name: values["interaction"][name] for name in MEANING if name in values["interaction"]}
    meaning.setdefault("type_field", None)
    features = FeatureSettings.model_validate({**given, **decided, "interaction": meaning})
    return settings.model_copy(update={"features": features})


def without_decisions(settings: Settings) -> Settings:
    """Return settings in which an undecided type of the events is none, for checks before the decisions."""
    given = settings.features
    if not given.auto or "type_field" in given.interaction.model_fields_set:
        return settings
    meaning = given.interaction.model_copy(update={"type_field": None})
    return settings.model_copy(update={"features": given.model_copy(update={"interaction": meaning})})


def with_stored_features(settings: Settings, metadata: Mapping[str, Any]) -> Settings:
    """Return settings whose `features: auto` is completed with the features decided for a stored model.

    metadata: of the model; it contains the redacted settings of its run.
    """
    stored = metadata.get("settings", {}).get("features")
    return with_decisions(settings, stored) if settings.features.auto and stored is not None else settings
