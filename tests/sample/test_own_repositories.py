"""Repositories that nobody made for rec_ray, from `init` on: every feature equals a computation in pandas.

The offline stores are one of the tests' own, as Snowflake or BigQuery are read, and PostgreSQL with a SQL registry.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from feast import FeatureStore
from feast_shops import START, TableRepo, TinyRepo, films, model_shop

from rec_ray.cli.main import main
from rec_ray.config.loading import load_settings
from rec_ray.feature_store.definitions import find_side
from rec_ray.feature_store.point_in_time import point_in_time, portable_config
from rec_ray.feature_store.registry import read_registry
from rec_ray.feature_store.repository import open_store


def apply(folder, objects, **sections):
    """Write feature_store.yaml and register the definitions, as `feast apply` does."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "project": "theirs",
        "provider": "local",
        "registry": "registry.db",
        "online_store": {"type": "sqlite", "path": "online.db"},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(values | sections))
    FeatureStore(repo_path=str(folder)).apply(objects)


def require_right_features(settings, repo):
    """Compare each declared feature with pandas: as of a sample of instants, and as of today."""
    store, random = open_store(settings.feast.repo), np.random.default_rng(0)
    for name in ("user", "item"):
        side, fields = find_side(read_registry(store), settings.feast, name), list(getattr(settings.features, name))
        assert fields
        frame = next(iter(repo.frames[view.view.batch_source.name] for view in side.views))
        ids = random.choice(frame[side.key].unique(), 300)
        times = START + pd.to_timedelta(random.integers(-9 * 86400, 120 * 86400, 300), unit="s")
        asked = pd.DataFrame({"id": ids, "time": times.as_unit("ns"), "n": range(300)}).sort_values(
            "time", kind="stable"
        )
        found = point_in_time(
            portable_config(store),
            side.join(fields),
            pa.array(asked.id.astype(str)),
            pa.array(asked.time, pa.timestamp("us", "UTC")),
        )
        for field in fields:
            view, feature = side.find(field, "features")
            expected = newest(repo.frames[view.view.batch_source.name], view.view, feature.name, asked)
            assert [None if value is None else value for value in found[field].to_pylist()] == expected, field
            assert sum(value is not None for value in expected) > 150


def newest(frame, view, field, asked):
    """Return the value of the newest row that is valid, the last written one of each time."""
    source = view.batch_source
    created = source.created_timestamp_column or source.timestamp_field
    rows = frame.sort_values([source.timestamp_field, created], kind="stable")
    rows = rows.drop_duplicates([view.join_keys[0], source.timestamp_field], keep="last")
    rows = pd.DataFrame({"id": rows[view.join_keys[0]], "time": rows[source.timestamp_field], "value": rows[field]})
    rows["time"] = rows.time.dt.as_unit("ns")
    limit = view.ttl if view.ttl else None
    joined = pd.merge_asof(asked, rows.sort_values("time", kind="stable"), on="time", by="id", tolerance=limit)
    return [None if pd.isna(value) else value for value in joined["value"]]


def test_a_shop_with_one_service_for_a_model_and_an_offline_store_of_its_own(tmp_path, capsys):
    repo = model_shop(TinyRepo(tmp_path / "theirs"), np.random.default_rng(1))
    place, shop = tmp_path / "theirs" / "repo", tmp_path / "shop"
    apply(place, repo.objects, offline_store={"type": "tiny_offline_store.TinyOfflineStore"})
    assert main(["init", str(shop), "--feast", str(place)]) == 0, capsys.readouterr().err
    settings = load_settings(shop / "rec_ray.yaml")
    assert settings.feast.events_view == "clicks", "the view with most rows"
    assert set(settings.features.user) == {"age", "town", "visits"} and set(settings.features.item) == {"age", "shelf"}
    require_right_features(settings, repo)


@pytest.mark.usefixtures("processes")
def test_a_shop_on_postgresql_with_its_registry_there_too(tmp_path, capsys, postgresql):
    postgresql.make_database("own_repositories")
    tables = TableRepo(tmp_path / "theirs", postgresql.engine("own_repositories"))
    repo = films(tmp_path / "theirs", np.random.default_rng(2), tables)
    online = postgresql.online_store("own_repositories")
    offline = {key: value for key, value in online.items() if key != "vector_enabled"}
    place, shop = tmp_path / "theirs" / "repo", tmp_path / "shop"
    registry = postgresql.registry("own_repositories")
    apply(place, repo.objects, registry=registry, offline_store=offline, online_store=online)
    assert main(["init", str(shop), "--feast", str(place)]) == 0, capsys.readouterr().err
    require_right_features(load_settings(shop / "rec_ray.yaml"), repo)
