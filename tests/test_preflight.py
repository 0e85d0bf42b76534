"""Mistakes in settings and repositories: all of them are named at once, without Ray."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, Float32, Int64, String

from rec_ray.config import Settings
from rec_ray.errors import ConfigError, DataError, FeatureStoreError, SchemaError
from rec_ray.feature_store.repository import open_store
from rec_ray.preflight import SOURCES, check_definitions, find_faults

START = pd.Timestamp("2024-01-01", tz="UTC")
VIEWS = {"user_views": ["users"], "item_views": ["items"], "events_view": "events"}


def settings(features=None, publish=None, **feast):
    events = {"type_field": None}
    return Settings.model_validate(
        {
            "feast": {**VIEWS, **feast},
            "features": {"interaction": events, **(features or {})},
            "publish": publish or {},
        }
    )


@pytest.fixture(scope="module")
def repo(tmp_path_factory, make_repo):
    """Views of users, items and events; the file of users has numbers where a text is declared."""
    folder = tmp_path_factory.mktemp("preflight")
    frames = {
        "users": {"user_id": ["u"], "age": [30], "city": [7], "tags": [["a"]]},
        "items": {"item_id": ["i"], "price": [1.5], "title": ["t"]},
        "events": {"user_id": ["u"], "item_id": ["i"], "kind": ["buy"]},
    }
    for name, columns in frames.items():
        pd.DataFrame({**columns, "event_timestamp": [START]}).to_parquet(folder / f"{name}.parquet")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)

    def view(name, entities, fields):
        source = FileSource(name=name, path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp")
        schema = [Field(name=field, dtype=dtype) for field, dtype in fields.items()]
        return FeatureView(name=name, entities=entities, ttl=timedelta(0), schema=schema, source=source)

    gone = FileSource(name="gone", path=str(folder / "gone.parquet"), timestamp_field="event_timestamp")
    vectors = FeatureView(
        name="vectors",
        entities=[item],
        ttl=timedelta(0),
        schema=[Field(name="item_id", dtype=String), Field(name="embedding", dtype=Array(Float32), vector_length=7)],
        source=PushSource(name="their_items", batch_source=gone),
    )
    views = [
        view("users", [user], {"age": Int64, "city": String, "tags": Array(String)}),
        view("items", [item], {"price": Float32, "title": String}),
        view("events", [user, item], {"kind": String}),
        vectors,
    ]
    make_repo(folder / "repo", [user, item, *views])
    return folder / "repo"


MISTAKES = {
    "a view that is not there": ({"user_views": ["user"]}, {}, "did you mean 'users'"),
    "a view of others": ({"item_views": ["users"]}, {}, "keyed by 'user_id', not by 'item_id' alone"),
    "a wrong key": ({"user_key": "uid"}, {}, "keyed by 'user_id', not by 'uid' alone"),
    "a service that is not there": ({"item_views": []}, {}, "no feature service 'item_service'"),
    "events without the ids": ({"events_view": "users"}, {}, "no view with 'user_id' and 'item_id'"),
    "a field that is not there": ({}, {"user": {"aeg": {"kind": "numeric"}}}, "no field 'aeg'; did you mean 'age'"),
    "a kind that does not fit": ({}, {"item": {"title": {"kind": "numeric"}}}, "'title' is declared as numeric"),
    "a list read as one value": ({}, {"user": {"tags": {"kind": "categorical"}}}, "declared as categorical"),
    "a type field that is not there": (
        {},
        {"interaction": {"type_field": "type"}},
        "has no field 'type'; it has 'kind'",
    ),
    "a name that is not there": ({}, {"item_name": "name"}, "features.item_name: .* no field 'name'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_remedy(repo, name):
    feast, features, said = MISTAKES[name]
    with pytest.raises(ConfigError, match=said):
        check_definitions(open_store(repo), settings(features, **feast))


def test_all_mistakes_are_told_in_one_go(repo):
    features = {
        "user": {"aeg": {"kind": "numeric"}, "city": {"kind": "categorical"}},
        "item": {"title": {"kind": "numeric"}},
        "interaction": {"type_field": "type", "value_field": "stars"},
        "item_name": "name",
    }
    wrong = settings(features, {"item_push_source": "theirs"}, user_views=["users", "users:shoe"])
    faults = find_faults(open_store(repo), wrong)
    said = "\n".join(map(str, faults))
    for each in ("users:shoe", "'title' is declared as numeric", "'type'", "'stars'", "'name'", "'theirs'"):
        assert each in said
    with pytest.raises(ConfigError, match=r"8 faults, found before anything was started\n  1\. "):
        check_definitions(open_store(repo), wrong)


def test_many_mistakes_of_a_command_are_refused_together_and_before_the_slow_imports(repo, tmp_path):
    """The pipeline and the training take longer to import than Feast, the registry and the footers together to read."""
    values = {
        "feast": {**VIEWS, "repo": str(repo), "events_view": "event", "item_views": ["itms", "users"]},
        "features": {"user": {"aeg": {"kind": "numeric"}, "tags": {"kind": "categorical"}, "city": {"kind": "text"}}},
        "publish": {"user_push_source": "theirs"},
    }
    (tmp_path / "rec_ray.yaml").write_text(yaml.safe_dump(values))
    script = (
        "import sys; from rec_ray.cli.main import main; code = main(['run', '-C', sys.argv[1]]); "
        "print(code, sorted({'rec_ray.pipeline', 'rec_ray.training.trainer', 'ray.train'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert "9 faults, found before anything was started" in done.stderr
    for each in (
        "'event'",
        "'itms'",
        "not by 'item_id' alone",
        "'aeg'",
        "'tags' is declared as categorical",
        "users.parquet is int64",
        "'theirs'",
        "'user_items_push_source'",
    ):
        assert each in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_registry_that_nothing_was_applied_to_is_named(tmp_path):
    text = "project: shop\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
    (tmp_path / "feature_store.yaml").write_text(text)
    (fault,) = find_faults(open_store(tmp_path), settings())
    assert isinstance(fault, ConfigError) and f"run `feast apply` in {tmp_path}" in str(fault)


def test_files_that_are_not_as_declared_are_data_errors_with_both_types(repo):
    wrong = settings({"user": {"city": {"kind": "categorical"}}})
    with pytest.raises(SchemaError, match=r"column 'city' of .*users\.parquet is int64, but the view declares string"):
        check_definitions(open_store(repo), wrong)
    with pytest.raises(DataError):
        check_definitions(open_store(repo), wrong)


def test_a_file_that_is_gone_is_out_of_reach(repo):
    found = find_faults(open_store(repo), settings(item_views=["items", "vectors"]), [SOURCES])
    assert [type(fault) for fault in found] == [FeatureStoreError]
    assert "there is no file" in str(found[0])


def test_a_repository_without_push_sources_is_read_and_not_written(repo):
    store = open_store(repo)
    check_definitions(store, settings({"user": {"age": {"kind": "numeric"}}}))
    with pytest.raises(ConfigError, match="fed by a push source"):
        check_definitions(store, settings(publish={"item_push_source": "their_items"}))


def test_a_run_without_features_says_which_there_are(repo, caplog):
    check_definitions(open_store(repo), settings())
    assert "no feature is declared" in caplog.text and "'age', 'city', 'tags' of users" in caplog.text


def test_a_folder_without_a_repository_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has no feature_store\.yaml"):
        open_store(tmp_path)
