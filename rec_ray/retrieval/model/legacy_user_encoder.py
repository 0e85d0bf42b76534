"""User encoder in the format of the replaced system, whose backend loads one at each start and embeds new users by it.

Input: a bundle and an encoder of texts. Output: weights by the names of that architecture: the mean of a linear map of
text vectors, a normalisation, and a residual layer, which is zero here. The map is fitted by ridge regression to the
vectors of this model for users without a history, so its vectors are searched among the item vectors of the bundle.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rec_ray.errors import SchemaError
from rec_ray.retrieval.features.batch import FeatureBatch
from rec_ray.retrieval.features.timelines import TimelineInputs
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_queries

Array = npt.NDArray[Any]
SIZE, TEXT_SIZE = 64, 384
"""Dimensions of a vector and of a text vector, both constants of the replaced system."""
PREFERENCES = "preferences"
"""Field of a new user on which this model depends."""
SEPARATOR = "|"
"""Separator with which the backend joins preferences, unless the feature declares another."""
USERS = 2_000
"""New users that are drawn to fit the encoder; one in five is held out."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Candidates of the ridge parameter, as shares of the mean variance of a dimension."""
_COUNTS = ("items_num_numerical", "items_num_categorical", "users_num_numerical", "users_num_categorical")


@dataclass(frozen=True)
class LegacyUserEncoder:
    """Weights of the encoder by name.

    agreement: mean cosine between its vectors and those of the model, for new users that were held out; None if all new
    users get the same vector. reason: why they do, or empty.
    """

    weights: dict[str, Tensor]
    agreement: float | None
    reason: str = ""

    def to_files(self) -> tuple[bytes, bytes]:
        """Return the weights, as `torch.load` with `weights_only` reads them, and the JSON with the sizes.

        The encoder reads neither numbers nor categories, hence all sizes are 0.
        """
        buffer = io.BytesIO()
        torch.save(self.weights, buffer)
        return buffer.getvalue(), json.dumps(dict.fromkeys(_COUNTS, 0)).encode()


def fit_legacy_user_encoder(
    bundle: TwoTowerBundle, encode: Callable[[Sequence[str]], Array] | None, seed: int = 0
) -> LegacyUserEncoder:
    """Fit an encoder to a model.

    encode: n texts -> [n, 384]; None, or a model without the user feature `preferences`, gives every new user the
    vector of a user without features.

    Raises:
        SchemaError: the vectors of the model do not have 64 dimensions, or those of the texts not 384.
    """
    if bundle.embedding_size != SIZE:
        raise SchemaError(
            f"the encoder of the replaced system has {SIZE} dimensions, the model {bundle.embedding_size}"
        )
    vocabulary = bundle.preprocessor.users.vocabularies.get(PREFERENCES, ())
    if encode is None or not vocabulary:
        why = "no text encoder is set" if encode is None else f"the model has no user feature {PREFERENCES!r}"
        same = embed_new_users(bundle, pa.array([None], pa.string()))[0]
        return LegacyUserEncoder(_weights(np.zeros((TEXT_SIZE, SIZE)), same), None, why)
    rng = np.random.default_rng(seed)
    declared = bundle.preprocessor.users.declarations[PREFERENCES]
    most = min(5, len(vocabulary)) if declared.kind == "categories" else 1
    chosen = [rng.choice(len(vocabulary), rng.integers(1, most + 1), False) for _ in range(USERS)]
    between = declared.separator or SEPARATOR
    preferences = [between.join(vocabulary[place] for place in places) for places in chosen]
    inputs = _embed_texts(encode, preferences, rng)
    targets = embed_new_users(bundle, pa.array(preferences, pa.string()))
    held_out = np.arange(USERS) % 5 == 0
    best: tuple[float, Array, Array] | None = None
    for ridge in RIDGES:
        slope, intercept = _regress(inputs[~held_out], targets[~held_out], ridge)
        agreement = _mean_cosine(inputs[held_out] @ slope + intercept, targets[held_out])
        if best is None or agreement > best[0]:
            best = agreement, slope, intercept
    assert best is not None
    return LegacyUserEncoder(_weights(best[1], best[2]), best[0])


def embed_new_users(bundle: TwoTowerBundle, preferences: pa.Array) -> Array:
    """Return the model's vectors of users without history, all other features missing: n strings -> [n, d] float64."""
    n = len(preferences)
    users = bundle.preprocessor.users
    encoded = users.encode(
        pa.table({name: preferences if name == PREFERENCES else pa.nulls(n) for name in users.names})
    )
    features = FeatureBatch.from_numpy(encoded.numeric, encoded.tokens, encoded.token_counts, encoded.vector)
    none = torch.zeros(n, 0, dtype=torch.long)
    inputs = TimelineInputs(
        item_index=none,
        event_type=none,
        gap_seconds=torch.zeros(n, 0),
        length=torch.zeros(n, dtype=torch.long),
        user_features=features,
        feature_row=torch.arange(n).unsqueeze(1),
    )
    history = torch.zeros(1, bundle.embedding_size)
    return embed_queries(bundle.model, inputs, history).double().numpy()


def _embed_texts(
    encode: Callable[[Sequence[str]], Array], preferences: Sequence[str], rng: np.random.Generator
) -> Array:
    """Return the mean text vector of the four text columns that the backend encodes of a new user, [n, 384] float64.

    Its other three are email, gender and day of the sign-up; they vary here so that the fit learns to ignore them.

    Raises:
        SchemaError: the vectors have another length.
    """
    n = len(preferences)
    names = [f"user_{number}@example.com" for number in rng.integers(1_000_000, size=200)]
    genders = ["female", "male", "other", "unknown"]
    days = [f"{day}" for day in np.datetime64("2024-01-01") + rng.integers(1500, size=200)]
    others = [[values[place] for place in rng.integers(len(values), size=n)] for values in (names, genders, days)]
    columns = [preferences, *others]
    texts = sorted({text for column in columns for text in column})
    vectors = np.asarray(encode(texts), np.float64)
    if vectors.shape[1] != TEXT_SIZE:
        raise SchemaError(
            f"the backend of the replaced system encodes texts as {TEXT_SIZE} numbers, search.text_encoder as "
            f"{vectors.shape[1]}; name the model that the backend uses"
        )
    place = {text: number for number, text in enumerate(texts)}
    return np.mean([vectors[[place[text] for text in column]] for column in columns], axis=0)


def _regress(inputs: Array, targets: Array, ridge: float) -> tuple[Array, Array]:
    """Return slope [384, d] and intercept [d] of a ridge regression."""
    mean, middle = inputs.mean(0), targets.mean(0)
    centred = inputs - mean
    gram = centred.T @ centred
    gram += np.eye(len(gram)) * max(ridge * np.trace(gram) / len(gram), np.finfo(np.float64).tiny)
    slope = np.linalg.solve(gram, centred.T @ (targets - middle))
    return slope, middle - mean @ slope


def _mean_cosine(first: Array, second: Array) -> float:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean((first * second).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)))


def _weights(slope: Array, intercept: Array) -> dict[str, Tensor]:
    """Return the weights by the names of the replaced system's tower for no numbers and no categories."""
    return {
        "project_text.weight": torch.from_numpy(np.ascontiguousarray(slope.T)).float(),
        "project_text.bias": torch.from_numpy(np.array(intercept)).float(),
        "fn1.weight": torch.zeros(2 * SIZE, SIZE),
        "fn1.bias": torch.zeros(2 * SIZE),
        "fn2.weight": torch.zeros(SIZE, 2 * SIZE),
        "fn2.bias": torch.zeros(SIZE),
        # The root mean square is 1 after the normalisation; this factor makes the length of a vector 1.
        "norm.weight": torch.full((SIZE,), SIZE**-0.5),
        "norm1.weight": torch.ones(SIZE),
    }
