"""A small bundle of random weights, for tests that store and load models without training one."""

import dataclasses

import torch

from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, Preprocessor
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.towers import build_two_tower


def make_bundle(seed: int = 0) -> TwoTowerBundle:
    nothing = FeaturePreprocessor({}, {}, {})
    arguments = {
        "vocabulary_size": 4,
        "item_shape": dataclasses.asdict(nothing.shape),
        "user_shape": dataclasses.asdict(nothing.shape),
        "embedding_size": 8,
        "history": "mean",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_two_tower(**arguments)
    return TwoTowerBundle(model, arguments, Preprocessor(nothing, nothing, ("a", "b", "c"), ()), {"seed": seed})
