"""User encoder of a version for the backend of the replaced system, computed when the candidates are.

Input: settings, a bundle and the model of texts. Output: two objects below the version, which a push copies to the
bucket of the backend (`backend_bucket`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from rec_ray.config import Settings
from rec_ray.errors import ConfigError
from rec_ray.logs import LOGGER
from rec_ray.publishing.backend_bucket import FOLDER, legacy_names
from rec_ray.retrieval.encoders.text import TextEncoder, text_dimensions
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.legacy_user_encoder import SIZE, TEXT_SIZE, fit_legacy_user_encoder
from rec_ray.storage.model_store import model_folder
from rec_ray.storage.object_store import Storage


def check_user_encoder(settings: Settings) -> None:
    """Check that the backend can use the encoder of a model with these settings.

    Raises:
        ConfigError: the dimensions of the model or of the texts differ from those of the backend.
    """
    if not settings.publish.legacy_user_encoder:
        return
    turn_off = "or set publish.legacy_user_encoder: false, if no backend loads it"
    if settings.model.embedding_size != SIZE:
        raise ConfigError(
            f"publish.legacy_user_encoder: the backend's encoder has {SIZE} dimensions, model.embedding_size is "
            f"{settings.model.embedding_size}; set it to {SIZE}, {turn_off}"
        )
    if settings.search.text_encoder:
        found = text_dimensions(settings.search.text_model)
        if found != TEXT_SIZE:
            raise ConfigError(
                f"publish.legacy_user_encoder: the backend encodes texts as {TEXT_SIZE} numbers, search.text_encoder "
                f"as {found}; name the backend's model, {turn_off}"
            )


def make_user_encoder(storage: Storage, bundle: TwoTowerBundle, version: str, text_model: str) -> float | None:
    """Store the encoder of a version; return its agreement with the model, None if all new users get one vector.

    text_model: name or path of the model with which the backend encodes texts; empty: none.

    Raises:
        SchemaError: as `fit_legacy_user_encoder`.
        ConfigError: the text model is missing.
    """

    def encode(texts: Sequence[str]) -> Any:
        return ray.get(_encode.remote(text_model, list(texts)))

    made = fit_legacy_user_encoder(bundle, encode if text_model else None)
    for name, data in zip(legacy_names(version), made.to_files(), strict=True):
        storage.write_checked(f"{model_folder(version)}/{FOLDER}/{name}", data)
    if made.reason:
        LOGGER.warning(
            "user encoder of version %s: every new user gets the list of a user without history, because %s; set "
            "search.text_encoder to the model of the backend and declare `preferences` in features.user",
            version,
            made.reason,
        )
    return made.agreement


@ray.remote(num_cpus=0.5)
def _encode(model: str, texts: Sequence[str]) -> Any:
    return TextEncoder(model).encode(texts)
