"""A recommender of random weights over any number of items without features, for tests and benches."""

import dataclasses

import numpy as np
import pyarrow as pa
import torch

from rec_ray.api.item_vectors import ItemVectors
from rec_ray.api.recommender import Recommender
from rec_ray.config import CandidateSettings, InteractionSettings
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, Preprocessor
from rec_ray.retrieval.features.timelines import QUERIES, TIMELINES
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.towers import build_two_tower
from rec_ray.retrieval.ragged import lists_of


def random_bundle(items: int, history: str, size: int = 64) -> TwoTowerBundle:
    nothing = FeaturePreprocessor({}, {}, {})
    ids = tuple(sorted(f"item {number}" for number in range(items)))
    arguments = {
        "vocabulary_size": items + 1,
        "item_shape": dataclasses.asdict(nothing.shape),
        "user_shape": dataclasses.asdict(nothing.shape),
        "embedding_size": size,
        "history": history,
        "history_rows": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_two_tower(**arguments)
        with torch.no_grad():
            model.item_tower.ids.weight[1:].normal_()
    preprocessor = Preprocessor(nothing, nothing, ids, ())
    return TwoTowerBundle(model.eval(), {"history_length": 50, **arguments}, preprocessor, {})


def random_vectors(bundle: TwoTowerBundle) -> ItemVectors:
    matrix = torch.nn.functional.normalize(bundle.model.item_tower.ids.weight[1:].detach(), dim=1).numpy()
    lists = lists_of(np.full(len(matrix), matrix.shape[1]), matrix.reshape(-1), pa.float32())
    return ItemVectors.of(bundle, pa.array(bundle.preprocessor.item_ids), lists)


def random_model(items: int, history: str) -> Recommender:
    bundle = random_bundle(items, history)
    return Recommender(bundle, "1", random_vectors(bundle), CandidateSettings(), InteractionSettings())


def random_timelines(served: Recommender, users: int, seed: int) -> pa.Table:
    """Return rows of `TIMELINES` of 1 to 60 events each."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 61, size=users)
    total = int(counts.sum())
    seconds = np.concatenate([np.sort(rng.choice(10**6, size=count, replace=False)) for count in counts])
    empty = np.zeros(users, np.int64)
    columns = [
        pa.array([f"user {number}" for number in range(users)]),
        lists_of(counts, rng.integers(1, len(served.item_ids) + 1, size=total), pa.int32()),
        lists_of(counts, np.zeros(total), pa.int32()),
        lists_of(counts, seconds, pa.int64()),
        lists_of(counts, np.ones(total), pa.float32()),
        lists_of(counts, np.zeros(total), pa.int8()),
        lists_of(counts + QUERIES, np.zeros(total + QUERIES * users), pa.int32()),
        *(lists_of(empty, np.zeros(0), kind) for kind in (pa.float32(), pa.int32(), pa.int32(), pa.float32())),
    ]
    return pa.table(columns, schema=TIMELINES)
