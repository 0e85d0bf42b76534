"""Keys of values that a process caches change with every field that the value depends on."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime

import pyarrow.fs as pafs
import pytest
import ray

from rec_ray.candidates.batch_recommender import CandidateContext
from rec_ray.candidates.item_shards import ItemShards
from rec_ray.config import CandidateSettings
from rec_ray.evaluation.rank_task import RankingPlan
from rec_ray.storage.object_store import Storage


def reference(number: int) -> ray.ObjectRef:
    return ray.ObjectRef(bytes([number]) * 28)


NOW, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
FOLDER, OTHER_FOLDER = (Storage(pafs.LocalFileSystem(), root) for root in ("/a", "/b"))
SETTINGS, OTHER_SETTINGS = CandidateSettings(), CandidateSettings(diversity=0.3)
SHARDS = ItemShards((reference(1),), (5,), 8, 16)
OTHERS = [
    (
        SHARDS,
        {"refs": (reference(2),), "counts": (6,), "embedding_size": 9, "probes": 17, "device": "cuda"},
    ),
    (
        CandidateContext(reference(1), SHARDS, reference(2), None, SETTINGS, NOW),
        {
            "bundle": reference(3),
            "items": replace(SHARDS, device="cuda"),
            "filters": reference(3),
            "popularity": reference(4),
            "settings": OTHER_SETTINGS,
            "now": LATER,
        },
    ),
    (
        RankingPlan("model", reference(1), None, "catalogue", FOLDER, (10,), (1, 2, 3), True),
        {
            "name": "live",
            "bundle": reference(2),
            "baselines": reference(3),
            "catalogue": "other",
            "storage": OTHER_FOLDER,
            "ks": (10, 20),
            "bounds": (1, 2, 4),
            "exclude_seen": False,
            "candidates": SETTINGS,
            "now": NOW,
        },
    ),
]


@pytest.mark.parametrize("keyed, others", OTHERS, ids=[type(keyed).__name__ for keyed, _ in OTHERS])
def test_a_key_changes_with_every_field(keyed, others):
    assert {field.name for field in fields(keyed)} == set(others)
    assert replace(keyed).key == keyed.key
    for name, value in others.items():
        assert replace(keyed, **{name: value}).key != keyed.key, name
