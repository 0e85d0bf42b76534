"""The views that `rec-ray feast-views` writes into somebody's repository, and what a run does without any."""

import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, Int64, String

from rec_ray.config import Settings
from rec_ray.errors import ConfigError
from rec_ray.feature_store.feast_views import apply_views, plan_views, write_views
from rec_ray.feature_store.push_targets import is_published
from rec_ray.feature_store.registry import read_registry
from rec_ray.feature_store.repository import open_store
from rec_ray.publishing.push import check_push_targets

KEYS = {
    "feast": {"user_key": "userid", "item_key": "sku"},
    "publish": {"similar_push_source": "item_items_push_source"},
}


@pytest.fixture
def repo(tmp_path, make_repo):
    """A view of people with numbers as ids; items have an entity and no view."""
    pd.DataFrame({"userid": [1], "age": [30], "event_timestamp": [pd.Timestamp("2024-01-01", tz="UTC")]}).to_parquet(
        tmp_path / "people.parquet"
    )
    source = FileSource(name="people", path=str(tmp_path / "people.parquet"), timestamp_field="event_timestamp")
    viewer = Entity(name="viewer", join_keys=["userid"], value_type=ValueType.INT64, description="Who watches.")
    item = Entity(name="ware", join_keys=["sku"], value_type=ValueType.STRING)
    people = FeatureView(
        name="people", entities=[viewer], ttl=timedelta(0), schema=[Field(name="age", dtype=Int64)], source=source
    )
    make_repo(tmp_path / "repo", [viewer, item, people], offline="dask")
    return tmp_path / "repo"


def test_written_and_applied_views_take_what_a_run_publishes(repo):
    settings = Settings.model_validate(KEYS)
    store = open_store(repo)
    assert not is_published(store, settings.publish)
    plan = plan_views(store, settings)
    assert plan.is_new and list(plan.views) == ["item_embedding", "user_embedding", "user_items", "item_items"]
    write_views(store, settings, plan)
    apply_views(store, plan)
    store = open_store(repo)
    assert is_published(store, settings.publish)
    targets = check_push_targets(store, settings.publish, "cosine", 64)
    assert [(target.view, target.key) for target in targets.values()] == [
        ("item_embedding", "sku"),
        ("item_items", "sku"),
        ("user_embedding", "userid"),
        ("user_items", "userid"),
    ]
    assert store.get_entity("viewer").description == "Who watches."
    assert [each.name for each in store.get_feature_service("recommendations").feature_view_projections] == [
        "user_items"
    ]
    now = pd.Timestamp.now("UTC")
    row = {"userid": [1], "top_k_item_ids": [["a", "b"]], "top_k_scores": [[0.5, 0.25]], "model_version": ["1"]}
    store.push("user_items_push_source", pd.DataFrame({**row, "event_timestamp": [now]}))
    answer = store.get_online_features(
        features=store.get_feature_service("recommendations"), entity_rows=[{"userid": 1}]
    )
    assert answer.to_dict()["top_k_item_ids"] == [["a", "b"]]
    again = plan_views(store, settings)
    assert not again.is_new
    write_views(store, settings, again)


def test_their_own_feast_apply_finds_nothing_to_change(repo):
    settings, store = Settings.model_validate(KEYS), open_store(repo)
    (repo / "theirs.py").write_text(
        "from feast import Entity, ValueType\n"
        'viewer = Entity(name="viewer", join_keys=["userid"], value_type=ValueType.INT64, description="Who watches.")\n'
    )
    plan = plan_views(store, settings)
    write_views(store, settings, plan)
    apply_views(store, plan)
    command = [sys.executable, "-c", "from feast.cli.cli import cli; cli()", "plan"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True)
    changed = [
        line for line in done.stdout.splitlines() if line.startswith(("Created", "Updated")) and "table" not in line
    ]
    assert changed == []


def test_a_sql_store_gets_tables_of_its_own_kind(repo):
    file = repo / "feature_store.yaml"
    postgres = {"type": "postgres", "host": "localhost", "database": "shop", "user": "me", "password": "secret"}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"offline_store": postgres}))
    text = plan_views(open_store(repo), Settings.model_validate(KEYS)).text
    assert "import PostgreSQLSource" in text and 'table="rec_ray_user_items"' in text and "Path(" not in text
    compile(text, "rec_ray_views.py", "exec")


def test_names_that_somebody_else_uses_are_refused(repo):
    store = open_store(repo)
    source = FileSource(name="other", path=str(repo / "other.parquet"), timestamp_field="event_timestamp")
    other = FeatureView(
        name="user_items",
        entities=[store.get_entity("viewer")],
        schema=[Field(name="userid", dtype=Int64), Field(name="things", dtype=Array(String))],
        source=PushSource(name="theirs", batch_source=source),
    )
    store.apply([other])
    with pytest.raises(ConfigError, match=r"already has 'user_items', which rec_ray did not add: nothing was added"):
        plan_views(store, Settings.model_validate(KEYS))
    assert set(read_registry(store).views) == {"people", "user_items"}


def test_a_file_that_somebody_else_wrote_is_left_alone(repo):
    (repo / "rec_ray_views.py").write_text("mine = 1\n")
    store, settings = open_store(repo), Settings.model_validate(KEYS)
    with pytest.raises(ConfigError, match="rec_ray did not write it"):
        write_views(store, settings, plan_views(store, settings))


def test_the_command_shows_what_it_adds_and_adds_it(repo, tmp_path, capsys):
    from rec_ray.cli.main import main

    (tmp_path / "rec_ray.yaml").write_text("feast: {repo: repo, user_key: userid, item_key: sku}\n")
    assert main(["feast-views", "-C", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "To add to Feast project shop:\n  + view item_embedding: embedding, model_version" in said
    assert set(read_registry(open_store(repo)).views) == {"people"}
    assert main(["feast-views", "--apply", "--json", "-C", str(tmp_path)]) == 0
    assert '"applied": true' in capsys.readouterr().out
    assert set(read_registry(open_store(repo)).views) == {"people", "item_embedding", "user_embedding", "user_items"}


def test_the_page_for_own_repositories_names_settings_and_options_that_there_are(capsys):
    from rec_ray.cli.main import main
    from rec_ray.config import FeastSettings

    page = (Path(__file__).parents[2] / "docs" / "own-feast.md").read_text()
    named = set(
        re.findall(r"`(?:feast\.)?((?:user|item|events)_(?:views|view|key|user_field|item_field|service))`", page)
    )
    assert len(named) > 7 and named <= set(FeastSettings.model_fields)
    assert main(["init", "--help"]) == 0
    known = capsys.readouterr().out
    options = set(re.findall(r"`(--[a-z-]+)`", page)) - {"--apply"}
    assert len(options) == 7 and all(option in known for option in options)
