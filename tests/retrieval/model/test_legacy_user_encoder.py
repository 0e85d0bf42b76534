"""The user encoder of the replaced system: loaded as its backend loads it, and near the model's own vectors."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from old_backend import OldTower

from rec_ray.errors import SchemaError
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, Preprocessor, collect_statistics, fit_features
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.legacy_user_encoder import LegacyUserEncoder, embed_new_users, fit_legacy_user_encoder
from rec_ray.retrieval.model.towers import build_two_tower
from rec_ray.schema import FeatureDeclaration

TOPICS = ["Kitchen", "Phones", "Cables", "Lamps", "Watches", "Kitchen&Home"]


def make_bundle(
    size: int = 64, *, with_preferences: bool = True, history: str = "mean", kind: str = "categories"
) -> TwoTowerBundle:
    declared = {"age": FeatureDeclaration("numeric")}
    if with_preferences:
        declared |= {"preferences": FeatureDeclaration(kind, separator=None if kind == "categorical" else "|")}
    table = pa.table({"preferences": TOPICS, "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
    users = fit_features(collect_statistics(table, declared), declared, text_buckets=0, max_vocabulary=10)
    nothing = FeaturePreprocessor({}, {}, {})
    arguments = {
        "vocabulary_size": 4,
        "item_shape": dataclasses.asdict(nothing.shape),
        "user_shape": dataclasses.asdict(users.shape),
        "embedding_size": size,
        "history": history,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_two_tower(**arguments)
        tokens = model.user_tower.features.tokens
        if tokens is not None:
            with torch.no_grad():
                # As after training: the features matter.
                tokens.weight.normal_()
    return TwoTowerBundle(model.eval(), arguments, Preprocessor(users, nothing, ("a", "b", "c"), ()), {})


def encode(texts: Sequence[str], size: int = 384) -> Any:
    """Encode texts as language models do, in miniature: each word adds its direction, and all share one."""
    rows = []
    for text in texts:
        vector = np.ones(size)
        for word in text.replace("|", " ").replace("@", " ").replace("-", " ").split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            vector = vector + np.random.default_rng(seed).normal(size=size)
        rows.append(vector / np.linalg.norm(vector))
    return np.array(rows, np.float32)


def load(encoder: LegacyUserEncoder) -> OldTower:
    weights, config = encoder.to_files()
    sizes = json.loads(config)
    tower = OldTower(sizes["users_num_numerical"], sizes["users_num_categorical"])
    tower.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    return tower.eval()


def embed(tower: OldTower, preferences: str, gender: str = "female") -> Any:
    texts = torch.from_numpy(encode(["new@shop.example", gender, "2026-07-08", preferences]))
    with torch.no_grad():
        return tower(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long), texts[None])[0].numpy()


@pytest.mark.parametrize(
    ("history", "kind"), [("mean", "categories"), ("none", "categorical"), ("transformer", "categories")]
)
def test_a_new_user_gets_nearly_the_vector_of_the_model(history: str, kind: str) -> None:
    bundle = make_bundle(history=history, kind=kind)
    encoder = fit_legacy_user_encoder(bundle, encode)
    tower = load(encoder)
    wanted = embed_new_users(bundle, pa.array([*TOPICS, None], pa.string()))

    assert encoder.agreement is not None and encoder.agreement > 0.9
    for place, topic in enumerate(TOPICS):
        found = embed(tower, topic)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-4)
        # Nearest of the model's six vectors: the own one.
        assert int(np.argmax(wanted[: len(TOPICS)] @ found)) == place
        assert embed(tower, topic, gender="other") @ found > 0.99, "what the model does not know is ignored"


@pytest.mark.parametrize(
    ("bundle", "encoder", "reason"),
    [(make_bundle(), None, "no text encoder"), (make_bundle(with_preferences=False), encode, "no user feature")],
)
def test_without_texts_or_preferences_all_get_the_vector_of_an_unknown_user(
    bundle: TwoTowerBundle, encoder: Any, reason: str
) -> None:
    made = fit_legacy_user_encoder(bundle, encoder)
    unknown = embed_new_users(bundle, pa.array([None], pa.string()))[0]

    assert made.agreement is None and reason in made.reason
    for topic in TOPICS:
        assert embed(load(made), topic) == pytest.approx(unknown, abs=1e-5)


def test_other_dimensions_than_the_backend_s_are_refused() -> None:
    with pytest.raises(SchemaError, match="64 dimensions, the model 32"):
        fit_legacy_user_encoder(make_bundle(32), encode)
    with pytest.raises(SchemaError, match=r"384 numbers, search\.text_encoder as 100"):
        fit_legacy_user_encoder(make_bundle(), lambda texts: encode(texts, 100))
