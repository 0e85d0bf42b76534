"""Decides the features of a run with `features: auto` when it starts, as `rec-ray init --feast` decides them once.

Input: an open store and the settings. Output: a record of the decisions, which the ledger of the run keeps;
`config.decided_features` completes the settings with them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rec_ray.config import Settings
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.registry import read_registry
from rec_ray.logs import LOGGER
from rec_ray.sample.feast_features import decide_roles
from rec_ray.sample.feast_layout import LayoutOptions


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
