"""A project folder works with the real Feast, wherever the process stands."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError, EmptyDataError, FeatureStoreError, SchemaError
from rec_ray.sample.feature_repo import apply_feature_repo, project_name, write_feature_repo
from rec_ray.sample.project import init_project
from rec_ray.schema import FeatureDeclaration

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir() and not os.environ.get("CI"), reason="the data sets of ../shared/data are not here"
)


def day(number: int) -> datetime:
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Users with several versions, two of them at one time with another; item times without a zone."""
    folder = tmp_path_factory.mktemp("own")
    users = {
        "user_id": ["a", "a", "b"],
        "event_timestamp": pa.array([day(0), day(10), day(5)], pa.timestamp("us", "UTC")),
        "country": ["DE", "FR", "US"],
        "age": [30, 31, 40],
    }
    items = {
        "item_id": ["x", "y"],
        "name": ["Red shirt", "Blue shoe"],
        "tags": [["red", "cotton"], ["blue"]],
        "arrival_date": pa.array([datetime(2024, 1, 1), datetime(2024, 1, 9)], pa.timestamp("ns")),
    }
    interactions = {
        "user_id": ["a", "a", "a", "b", "b"],
        "item_id": ["x", "y", "x", "x", "y"],
        "timestamp": pa.array([day(1), day(1), day(10), day(4), day(12)], pa.timestamp("us", "UTC")),
        "interaction_type": ["view", "view", "negative_view", "view", "purchase"],
    }
    for name, columns in (("users", users), ("items", items), ("interactions", interactions)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def project(own, tmp_path_factory):
    return init_project(tmp_path_factory.mktemp("projects") / "my-Shop 1", own)


def historical(repo: Path, service: str, entities: dict) -> pd.DataFrame:
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(repo))
    entity = pd.DataFrame(entities)
    return store.get_historical_features(entity_df=entity, features=store.get_feature_service(service)).to_df()


def test_summary_and_settings(project):
    assert (project.users, project.items, project.interactions) == (2, 2, 5)
    settings = load_settings(project.settings, environ={})
    assert Path(settings.feast.repo) == project.repo
    assert settings.features.user["age"] == FeatureDeclaration("numeric")
    assert settings.features.item["tags"] == FeatureDeclaration("categories")
    assert settings.features.item_name == "name"
    assert settings.features.interaction.type_field == "interaction_type"
    assert settings.features.interaction.negative_types == ["negative_view"]
    assert settings.evaluation.split == "time"
    assert "# country: categorical" in project.settings.read_text()


def test_features_are_joined_as_of_each_row_from_another_working_directory(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {
        "user_id": ["a", "a", "a", "b", "b", "unknown"],
        "event_timestamp": [day(1), day(1), day(10), day(4), day(12), day(12)],
        "row": range(6),
    }
    joined = historical(project.repo, "user_service", rows).sort_values("row")
    assert joined["country"].where(joined["country"].notna(), None).tolist() == ["DE", "DE", "FR", None, "US", None]
    assert joined["age"].fillna(-1).tolist() == [30, 30, 31, -1, 40, -1]
    items = historical(
        project.repo, "item_service", {"item_id": ["x", "y", "y"], "event_timestamp": [day(3), day(3), day(9)]}
    )
    items = items.sort_values(["item_id", "event_timestamp"])
    # An item that was bought before it arrived: the date is no time of a row.
    assert items["name"].tolist() == ["Red shirt", "Blue shoe", "Blue shoe"]


def test_names_that_consumers_read(project):
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(project.repo))
    assert store.project == "my_shop_1"
    assert {service.name for service in store.list_feature_services()} == {
        "user_service",
        "item_service",
        "interaction_service",
    }
    views = {view.name: view for view in store.list_feature_views()}
    pushed = {"item_embedding", "user_embedding", "user_items", "item_items"}
    assert set(views) == {"users", "items", "interactions", *pushed}
    embedding = {field.name: field for field in views["item_embedding"].features}
    assert str(embedding["embedding"].dtype) == "Array(Float32)"
    assert embedding["embedding"].vector_index and embedding["embedding"].vector_search_metric == "cosine"
    assert [field.name for field in views["user_items"].features] == ["top_k_item_ids", "top_k_scores", "model_version"]
    assert sorted(views["interactions"].join_keys) == ["item_id", "user_id"]
    assert views["users"].ttl == timedelta(0)


def test_pushed_rows_can_be_read_and_the_files_behind_are_valid(project):
    from feast import FeatureStore
    from feast.data_source import PushMode

    store = FeatureStore(repo_path=str(project.repo))
    rows = pd.DataFrame(
        {
            "user_id": ["a"],
            "top_k_item_ids": [["y", "x"]],
            "top_k_scores": [[0.5, 0.25]],
            "model_version": ["1"],
            "event_timestamp": [pd.Timestamp.now("UTC")],
        }
    )
    store.push("user_items_push_source", rows, to=PushMode.ONLINE)
    fields = ["user_items:top_k_item_ids", "user_items:top_k_scores", "user_items:model_version"]
    found = store.get_online_features(features=fields, entity_rows=[{"user_id": "a"}]).to_dict()
    assert found["top_k_item_ids"] == [["y", "x"]] and found["top_k_scores"] == [[0.5, 0.25]]
    for name in ("item_embedding", "user_embedding", "user_items"):
        assert pq.read_table(project.repo / "data" / f"{name}.parquet").num_rows == 0
    entity = pd.DataFrame({"user_id": ["a"], "event_timestamp": [pd.Timestamp.now("UTC")]})
    offline = store.get_historical_features(entity_df=entity, features=fields).to_df()
    assert len(offline) == 1


def test_a_moved_project_works_after_it_is_applied_again(project, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(project.repo, moved)
    apply_feature_repo(moved)
    from feast import FeatureStore

    sources = [view.batch_source.path for view in FeatureStore(repo_path=str(moved)).list_feature_views()]
    assert all(path.startswith(str(moved)) for path in sources)
    joined = historical(moved, "user_service", {"user_id": ["a"], "event_timestamp": [day(1)]})
    assert joined["country"].tolist() == ["DE"]


def test_a_folder_with_a_project_is_refused_and_kept(project, own):
    before = project.settings.read_text()
    with pytest.raises(ConfigError, match=r"already contains 'rec_ray\.yaml', 'feature_repo'; name another folder"):
        init_project(project.folder, own)
    assert project.settings.read_text() == before


def test_a_folder_that_cannot_be_written(tmp_path, own):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the project"):
        init_project(tmp_path / "file" / "shop", own)


def test_a_failure_leaves_nothing_behind(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "shop"
    source.mkdir()
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    stamps = pa.nulls(1, pa.timestamp("us"))
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "at": stamps}), source / "interactions.parquet")
    with pytest.raises(EmptyDataError):
        init_project(folder, source)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_feast_failures_carry_their_cause(tmp_path):
    (tmp_path / "feature_store.yaml").write_text("project: p\nprovider: local\nregistry: data/registry.db\n")
    (tmp_path / "definitions.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(FeatureStoreError, match="nowhere_to_be_found") as caught:
        apply_feature_repo(tmp_path)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_type_without_feast_field_is_an_error(tmp_path):
    schema = pa.schema([("user_id", pa.string()), ("odd", pa.struct([("a", pa.int64())]))])
    with pytest.raises(SchemaError, match="'odd' of users"):
        write_feature_repo(tmp_path, "p", dict.fromkeys(("users", "items", "interactions"), schema))


@pytest.mark.parametrize(
    ("text", "name"),
    [("My-Shop 1", "my_shop_1"), ("2024", "shop_2024"), ("日本", "shop"), ("_x", "x"), ("", "shop")],
)
def test_project_names(text, name):
    assert project_name(text) == name


def test_the_generated_shop(tmp_path):
    made = init_project(tmp_path / "demo", seed=1)
    assert (made.users, made.items, made.interactions) == (2000, 1000, 60_000)
    settings = load_settings(made.settings, environ={})
    assert settings.features.item["category"] == FeatureDeclaration("category_path", separator="|")
    assert settings.features.interaction.negative_types == ["negative_view"]
    items = pq.read_table(made.repo / "data" / "items.parquet").slice(0, 3)
    joined = historical(
        made.repo, "item_service", {"item_id": items["item_id"].to_pylist(), "event_timestamp": [day(366)] * 3}
    )
    assert sorted(joined["name"]) == sorted(items["name"].to_pylist())


@needs_shared
def test_rh_products(tmp_path):
    made = init_project(tmp_path / "rh", SHARED / "rh-products")
    assert (made.users, made.items, made.interactions) == (1000, 101, 20_000)
    features = load_settings(made.settings, environ={}).features
    assert features.user == {
        "signup_date": FeatureDeclaration("timestamp"),
        "preferences": FeatureDeclaration("categories", separator="|"),
    }
    assert features.item["category"] == FeatureDeclaration("category_path", separator="|")
    assert features.item["product_name"].kind == features.item["about_product"].kind == "text"
    assert features.item["actual_price"].kind == "numeric" and features.item["arrival_date"].kind == "timestamp"
    assert not {"img_link", "product_link"} & set(features.item)
    assert features.item_name == "product_name"
    assert features.interaction.negative_types == ["negative_view"]
    assert features.interaction.value_field == "rating"


@needs_shared
def test_beauty_keeps_the_order_of_its_rows(tmp_path):
    made = init_project(tmp_path / "beauty", SHARED / "beauty")
    assert (made.users, made.items, made.interactions) == (22_363, 12_101, 198_502)
    before = pq.read_table(SHARED / "beauty" / "interactions.parquet", columns=["user_id", "item_id"])
    after = pq.read_table(made.repo / "data" / "interactions.parquet", columns=["user_id", "item_id"])
    assert before.cast(after.schema) == after
    settings = load_settings(made.settings, environ={})
    assert settings.features.item == {"categories": FeatureDeclaration("categories")}
    assert settings.evaluation.split == "time"
    joined = historical(made.repo, "user_service", {"user_id": ["u1", "nobody"], "event_timestamp": [day(0)] * 2})
    assert len(joined) == 2


@needs_shared
def test_sessions_get_users_and_items_from_the_events(tmp_path):
    made = init_project(tmp_path / "sessions", SHARED / "sessions")
    assert (made.users, made.items, made.interactions) == (247_528, 43_097, 1_212_544)
    settings = load_settings(made.settings, environ={})
    assert settings.evaluation.split == "leave_one_out"
    assert settings.features.user == {} and settings.features.item == {}
    assert "# 100% of the users in the last 10 %" in made.settings.read_text()
    groups = pq.read_metadata(made.repo / "data" / "interactions.parquet")
    assert groups.row_group(0).num_rows == 250_000


def test_files_with_own_names_odd_columns_and_one_export_become_a_project(tmp_path):
    """From CSV and Parquet with names of their own: the YAML parses, Feast joins, and the summary has each column."""
    from rec_ray.sample.roles import ColumnNames

    source = tmp_path / "source"
    source.mkdir()
    events = pd.DataFrame(
        {
            "customer": [f"{n % 4:02d}" for n in range(40)],
            "sku": [f"s{n % 8}" for n in range(40)],
            "bought_at": [int((day(0) + timedelta(hours=n)).timestamp()) for n in range(40)],
            "Event": ["buy", "dislike\x07\nit"] * 20,
        }
    )
    events.to_csv(source / "interactions.csv.gz", index=False)
    columns = {"customer": [f"{n:02d}" for n in range(4)], "age:float\n": [1.5, 2.0, 3.0, 4.0], "as_of": [1, 2, 3, 4]}
    pq.write_table(pa.table({**columns, "timestamp": [day(99)] * 4}), source / "users.parquet")
    names = ColumnNames(user=("customer",), item=("sku",), type="Event")
    made = init_project(tmp_path / "shop", str(source), names=names)
    settings = load_settings(made.settings, environ={})
    assert set(settings.features.user) == {"age_float", "user_as_of"}
    assert settings.features.interaction.type_field == "Event"
    joined = historical(made.repo, "user_service", {"user_id": ["03", "3"], "event_timestamp": [day(0)] * 2})
    assert dict(zip(joined["user_id"], joined["age_float"].fillna(-1), strict=True)) == {"03": 4.0, "3": -1}
    roles = {(made.table, made.column): made.role for made in made.decisions}
    assert roles["interactions", "bought_at"] == "time of an event"
    assert roles["interactions", "Event"] == "type of an event"
    assert roles["users", "timestamp"] == "left out" and roles["users", "age:float\n"] == "written as age_float"
    assert roles["users", "age_float"] == "numeric" and roles["items", "item_id"] == "made"
    assert any(note.startswith("users: the earliest event") for note in made.notes)


def test_init_prints_the_table_of_decisions_and_names_every_problem(own, tmp_path, capsys, monkeypatch):
    from rec_ray.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")
    assert main(["init", str(tmp_path / "shop"), "--from", str(own)]) == 0
    printed = capsys.readouterr().out
    for row in ("timestamp", "time of an event", "interaction_type", "type of an event", "country", "categorical"):
        assert row in printed
    assert "┃ table" in printed and "Settings to look at" in printed
    options = ["--user-column", "x", "--time-column", "when", "--type-column", "kind"]
    assert main(["init", str(tmp_path / "other"), "--from", str(own), *options]) == 2
    said = capsys.readouterr().err
    assert "interactions.parquet has no column 'when'" in said and "has no column 'kind'" in said
    assert said.count("rec-ray: ") == 1


def test_on_a_terminal_init_asks_for_the_columns(own, tmp_path, capsys, monkeypatch):
    """Enter takes the guess; an answer that is no column ends with the error of a run without a terminal."""
    import io

    from rec_ray.cli.main import main

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    source = tmp_path / "source"
    source.mkdir()
    events = pq.read_table(own / "interactions.parquet").rename_columns(["customer", "sku", "ts", "kind"])
    pq.write_table(events, source / "interactions.parquet")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdin", Terminal("\n\n"))
    assert main(["init", str(tmp_path / "shop"), "--from", str(source)]) == 0
    printed = capsys.readouterr().out
    assert "has the id of the user? [customer]" in printed and "has the id of the item? [sku]" in printed
    monkeypatch.setattr("sys.stdin", Terminal("nobody\n\n"))
    assert main(["init", str(tmp_path / "other"), "--from", str(source)]) == 4
    assert "lacks the columns 'user_id'" in capsys.readouterr().err
