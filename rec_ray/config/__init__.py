"""All settings of the program: typed, documented and frozen; unknown keys are refused.

Input: plain values. Output: a `Settings` with one section for each part of the program, or a validation error that
names the faults. `loading` reads the file and the environment.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field, model_validator

from rec_ray.config.candidates import CandidateSettings, FilterSettings, UserRule
from rec_ray.config.checks import CheckSettings
from rec_ray.config.evaluation import EvaluationSettings
from rec_ray.config.features import FeatureSettings, InteractionSettings
from rec_ray.config.infrastructure import (
    SQLITE_ADDRESS,
    DatabaseSettings,
    FeastSettings,
    RaySettings,
    SideTableSettings,
    StorageSettings,
)
from rec_ray.config.model import ModelSettings
from rec_ray.config.publishing import PublishSettings
from rec_ray.config.search import ImageVector, SearchSettings
from rec_ray.config.section import ENV_PREFIX, Section
from rec_ray.config.training import TrainSettings
from rec_ray.config.tuning import TuneSettings

__all__ = [
    "ENV_PREFIX",
    "PLACEMENT_SECTIONS",
    "SECRETS",
    "SQLITE_ADDRESS",
    "CandidateSettings",
    "CheckSettings",
    "DatabaseSettings",
    "EvaluationSettings",
    "FeastSettings",
    "FeatureSettings",
    "FilterSettings",
    "ImageVector",
    "InteractionSettings",
    "ModelSettings",
    "PublishSettings",
    "RaySettings",
    "SearchSettings",
    "Section",
    "Settings",
    "SideTableSettings",
    "StorageSettings",
    "TrainSettings",
    "TuneSettings",
    "UserRule",
    "deciding_settings",
    "hash_settings",
    "redacted",
    "secrets_of",
]

SECRETS = {
    ("storage", "access_key"),
    ("storage", "secret_key"),
    ("database", "password"),
    ("side_tables", "password"),
}

PLACEMENT_SECTIONS = ("storage", "database", "ray", "publish", "checks", "tune")
"""Sections that place or refuse the outputs of a run, or that it does not read: they do not change its result."""


class Settings(Section):
    """All settings of a project."""

    feast: FeastSettings = Field(default_factory=FeastSettings)
    side_tables: SideTableSettings = Field(default_factory=SideTableSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    features: FeatureSettings = Field(default_factory=FeatureSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    candidates: CandidateSettings = Field(default_factory=CandidateSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    checks: CheckSettings = Field(default_factory=CheckSettings)
    publish: PublishSettings = Field(default_factory=PublishSettings)
    tune: TuneSettings = Field(default_factory=TuneSettings)

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.evaluation.test_fraction + self.evaluation.validation_fraction >= 1:
            raise ValueError("evaluation.test_fraction and evaluation.validation_fraction leave no events to train on")
        if self.model.history in ("auto", "transformer") and self.model.embedding_size % self.model.heads:
            raise ValueError(
                f"model.embedding_size {self.model.embedding_size} is not a multiple of model.heads {self.model.heads}"
            )
        if not (self.train.in_batch_negatives or self.train.uniform_negatives):
            raise ValueError("train.uniform_negatives 0 without train.in_batch_negatives leaves no negatives")
        return self


def find_secrets(settings: Settings) -> list[str]:
    """Return the values of the secrets, so that logs can mask them."""
    found = [getattr(getattr(settings, section), key) for section, key in sorted(SECRETS)]
    return [secret.get_secret_value() for secret in found if secret is not None]


def deciding_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that determine the result of a run, as plain values without secrets.

    The cluster and the storage places are left out, because a run may be resumed elsewhere, with other workers.
    """
    plain = {name: value for name, value in redact_settings(settings).items() if name not in PLACEMENT_SECTIONS}
    for section, address in (("feast", "repo"), ("side_tables", "url")):
        plain[section] = {name: value for name, value in plain[section].items() if name != address}
    return plain


def hash_settings(deciding: dict[str, Any]) -> str:
    """Return the SHA-256 sum of `deciding_settings`."""
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def redact_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values with every secret masked, for logs and stored records."""
    return settings.model_dump(mode="json")
