"""Settings completed with the features that a stored model was made with.

Input: settings with `features: auto` and the metadata of a model. Output: settings in which its features are declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec_ray.config import FeatureSettings, Settings


def with_stored_features(settings: Settings, metadata: Mapping[str, Any]) -> Settings:
    """Return settings whose `features: auto` is replaced with the features decided for a stored model.

    metadata: of the model; it contains the redacted settings of its run.
    """
    stored = metadata.get("settings", {}).get("features")
    if not settings.features.auto or stored is None:
        return settings
    return settings.model_copy(update={"features": FeatureSettings.model_validate(stored)})
