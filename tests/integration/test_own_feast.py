"""From somebody's own Feast repository to a list, and then into their online store: the commands in their order."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64, String

from rec_ray.cli.lookup import find_recommendations
from rec_ray.config.loading import load_settings
from rec_ray.feature_store.feast_views import apply_views, plan_views, write_views
from rec_ray.feature_store.repository import open_store
from rec_ray.pipeline import run_pipeline, run_publishing
from rec_ray.runs.stores import open_version_database
from rec_ray.sample.feast_project import init_from_feast

pytestmark = pytest.mark.usefixtures("processes")
START = pd.Timestamp("2026-01-01", tz="UTC")


@pytest.fixture
def films(tmp_path, make_repo):
    """Numbers as keys, three views, Feast's default offline store, paths relative to the repository."""
    random = np.random.default_rng(0)
    repo = tmp_path / "films"
    (repo / "data").mkdir(parents=True)
    ids = np.arange(1, 41)
    begun = {"event_timestamp": START - pd.Timedelta("90D")}
    frames = {
        "viewers": pd.DataFrame({"userid": ids, "age": random.integers(15, 80, 40), **begun}),
        "films": pd.DataFrame({"movie_id": ids, "title": [f"The film {k}" for k in ids], **begun}),
        "ratings": pd.DataFrame(
            {
                "userid": random.choice(ids, 800),
                "movie_id": random.choice(ids, 800),
                "rating": random.integers(1, 6, 800).astype("float32"),
                "event_timestamp": START + pd.to_timedelta(random.integers(0, 90 * 86400, 800), unit="s"),
            }
        ),
    }
    viewer = Entity(name="viewer", join_keys=["userid"], value_type=ValueType.INT64)
    film = Entity(name="film", join_keys=["movie_id"], value_type=ValueType.INT64)
    views = []
    for name, entities, fields in (
        ("viewers", [viewer], {"age": Int64}),
        ("films", [film], {"title": String}),
        ("ratings", [viewer, film], {"rating": Float32}),
    ):
        frames[name].to_parquet(repo / "data" / f"{name}.parquet", index=False)
        source = FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="event_timestamp")
        schema = [Field(name=field, dtype=dtype) for field, dtype in fields.items()]
        views.append(FeatureView(name=name, entities=entities, ttl=timedelta(0), schema=schema, source=source))
    make_repo(repo, [viewer, film, *views], offline="dask")
    return repo


@pytest.mark.usefixtures("local_ray")
def test_three_commands_give_a_list_and_two_more_publish_it(films: Path, tmp_path: Path) -> None:
    made = init_from_feast(tmp_path / "shop", films)
    settings = load_settings(made.settings, ["train.epochs=1", "train.refit=off", "evaluation.gate=off"])
    report = run_pipeline(settings)
    assert list(report.where)[-1] == "not published" and "rec-ray publish 1" in report.where["not published"]
    assert (
        not [name for name in report.counts if "pushed" in name] and report.counts["users with recommendations"] == 40
    )
    assert open_version_database(settings).live() is None
    stored = find_recommendations(settings, "7", 5)
    assert len(stored.item_ids) == 5 and "stored, not published" in stored.title
    assert stored.names[stored.item_ids[0]] == f"The film {stored.item_ids[0]}"

    store = open_store(films)
    plan = plan_views(store, settings)
    write_views(store, settings, plan)
    apply_views(store, plan)
    published = run_publishing(settings)
    assert published.counts["rows pushed to user_items_push_source"] == 40
    assert published.counts["rows pushed to item_items_push_source"] == 40
    assert open_version_database(settings).live() == "1"
    assert find_recommendations(settings, "7", 5).item_ids == stored.item_ids
    store = open_store(films)
    service = store.get_feature_service("recommendations")
    answer = store.get_online_features(features=service, entity_rows=[{"userid": 7}]).to_dict()
    assert answer["top_k_item_ids"][0][:5] == stored.item_ids and answer["model_version"] == ["1"]
