"""`rec-ray init --feast` on repositories as people have them: what it decides, and that the settings fit."""

import contextlib
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from feast import FeatureService, Field, FileSource, PushSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Float32, Float64, Int64, String, UnixTimestamp
from feast_shops import START, N, Repo, TableRepo, entity, events, films, people

from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError, SchemaError
from rec_ray.feature_store.offline_source import event_source, read_slice, slice_source
from rec_ray.feature_store.point_in_time import portable_config
from rec_ray.feature_store.push_targets import is_published
from rec_ray.feature_store.registry import read_registry
from rec_ray.feature_store.repository import open_store
from rec_ray.preflight import find_faults
from rec_ray.sample.feast_layout import LayoutOptions
from rec_ray.sample.feast_project import init_from_feast


def test_a_film_shop_is_understood_and_its_settings_fit(tmp_path, make_repo):
    repo = films(tmp_path / "theirs", np.random.default_rng(0))
    make_repo(tmp_path / "theirs" / "repo", repo.objects, offline="dask")
    before = sorted(path for path in (tmp_path / "theirs").rglob("*") if path.is_file())
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    feast, features = settings.feast, settings.features
    assert (feast.user_key, feast.item_key, feast.events_view) == ("userid", "movie_id", "ratings")
    assert (feast.user_views, feast.item_views) == (["viewer_features"], ["film_features"])
    assert {name: each.kind for name, each in features.user.items()} == {"age": "numeric", "town": "categorical"}
    assert {name: each.kind for name, each in features.item.items()} == {"title": "text", "genres": "categories"}
    assert (features.item_name, features.item["genres"].separator) == ("title", "|")
    assert (features.interaction.type_field, features.interaction.value_field) == (None, "rating")
    assert features.interaction.min_positive_value == 3
    said = {choice.what: choice for choice in made.choices}
    assert "binary is not a feature type" in said["film_features.poster"].why
    assert said["events"].option == "--events-view"
    assert find_faults(open_store(feast.repo), settings) == []
    assert not is_published(open_store(feast.repo), settings.publish)
    assert sorted(path for path in (tmp_path / "theirs").rglob("*") if path.is_file()) == before
    assert len(made.settings.read_text().splitlines()) < 90


def test_the_command_prints_each_decision_and_the_next_command(tmp_path, make_repo, capsys):
    from rec_ray.cli.main import main

    repo = films(tmp_path / "theirs", np.random.default_rng(0))
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    shop = tmp_path / "shop"
    assert main(["init", str(shop), "--feast", str(tmp_path / "theirs" / "repo"), "--value-column", "rating"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  viewer_features\.town +categorical +.* values in 400 rows$", said, re.M)
    rating = r"^  rating +value of an event +rating 1 to 5, a rating of 1 to 5: .*\[--value-column\]$"
    assert re.search(rating, said, re.M)
    assert said.rstrip().endswith(f"Next: rec-ray run -C {shop}")


def test_order_lines_with_several_views_of_customers_beside_other_entities(tmp_path, make_repo):
    random = np.random.default_rng(1)
    repo = Repo(tmp_path / "theirs")
    customer, product, store = entity("client", "client_no"), entity("ware", "ware_no"), entity("branch", "branch_no")
    who = people(random, "client_no")
    repo.view("master", [customer], {"age": Int64}, repo.source("master", who))
    habits = who.assign(age=1.5, vip=True, last_seen=who.event_timestamp)
    habits = repo.source("habits", habits)
    repo.view("habits", [customer], {"age": Float64, "vip": Bool, "last_seen": UnixTimestamp}, habits)
    things = (
        people(random, "ware_no")
        .assign(price=random.random(N), labels=[[a] for a in random.choice(["a", "b"], N)])
        .drop(columns="age")
    )
    things = repo.source("wares", things)
    wares = repo.view("wares", [product], {"price": Float64, "labels": Array(String)}, things)
    places = pd.DataFrame({"branch_no": [1, 2], "event_timestamp": START, "town": ["Rome", "Oslo"]})
    repo.view("branches", [store], {"town": String}, repo.source("branches", places))
    lines = events(random, "client_no", "ware_no").assign(branch_no=1, quantity=random.integers(1, 5, 4 * N))
    lines["quantity"] = lines.quantity.where(lines.index % 10 > 0, -1)
    repo.view("lines", [customer, product, store], {"quantity": Int64}, repo.source("lines", lines))
    seen = events(random, "client_no", "ware_no").head(10).assign(seconds=1.0)
    repo.view("views", [customer, product], {"seconds": Float64}, repo.source("views", seen))

    asked = RequestSource(name="asked", schema=[Field(name="amount", dtype=Float64)])

    @on_demand_feature_view(sources=[wares, asked], schema=[Field(name="total", dtype=Float64)])
    def totals(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"total": inputs["price"] * inputs["amount"]})

    @on_demand_feature_view(sources=[wares], schema=[Field(name="cents", dtype=Float64)])
    def cents(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"cents": inputs["price"] * 100})

    make_repo(tmp_path / "theirs" / "repo", [*repo.objects, totals, cents])
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    said = {choice.what: choice for choice in made.choices}
    assert settings.feast.events_view == "lines" and "lines 1,600, views 10" in said["events"].why
    assert (settings.feast.user_key, settings.feast.item_key) == ("client_no", "ware_no")
    assert set(settings.features.user) == {"master__age"}, "the others have one value"
    assert settings.features.item["labels"].kind == "categories" and "cents" in settings.features.item
    assert settings.features.interaction.value_field == "quantity"
    assert said["totals"].decision == said["branches"].decision == "left out"
    assert "request data" in said["totals"].why
    assert find_faults(open_store(settings.feast.repo), settings) == []


def test_one_service_for_a_model_and_views_that_are_pushed_to(tmp_path, make_repo):
    """Text keys, a status of events, and the views of another recommender, which are no features."""
    random = np.random.default_rng(2)
    repo = Repo(tmp_path / "theirs")
    user, item = entity("user", "uid", ValueType.STRING), entity("product", "pid", ValueType.STRING)
    users = people(random, "uid").astype({"uid": str})
    users = repo.view("users", [user], {"age": Int64}, PushSource(name="p", batch_source=repo.source("users", users)))
    things = people(random, "pid").astype({"pid": str}).assign(category=random.choice(["a/b", "a/c"], N))
    things = repo.view("things", [item], {"category": String}, repo.source("things", things))
    clicks = events(random, "uid", "pid").astype({"uid": str, "pid": str})
    clicks["action"] = random.choice(["view", "buy", "return"], 4 * N)
    clicks = repo.view("clicks", [user, item], {"action": String}, repo.source("clicks", clicks))
    old = pd.DataFrame({"uid": ["1"], "event_timestamp": [START], "top_k_item_ids": [["2"]]})
    old = PushSource(name="old", batch_source=repo.source("old", old))
    repo.view("old_lists", [user], {"top_k_item_ids": Array(String)}, old)
    service = FeatureService(name="model_v1", features=[users, things, clicks])
    make_repo(tmp_path / "theirs" / "repo", [*repo.objects, service])
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo" / "feature_store.yaml")
    settings = load_settings(made.settings)
    assert settings.feast.user_views == ["users"]
    assert settings.features.interaction.type_field == "action"
    assert settings.features.interaction.negative_types == ["return"]
    assert {choice.what: choice.decision for choice in made.choices}["old_lists"] == "left out"
    assert find_faults(open_store(tmp_path / "theirs" / "repo"), settings) == []


def test_events_keyed_by_their_own_id_and_wishes(tmp_path, make_repo):
    random = np.random.default_rng(3)
    repo = Repo(tmp_path / "theirs")
    shopper, good, order = entity("shopper", "shopper_id"), entity("good", "good_id"), entity("order", "order_no")
    repo.view("shoppers", [shopper], {"age": Int64}, repo.source("shoppers", people(random, "shopper_id")))
    repo.view("goods", [good], {"age": Int64}, repo.source("goods", people(random, "good_id")))
    orders = events(random, "shopper_id", "good_id").assign(order_no=range(4 * N), returned=random.random(4 * N) < 0.1)
    fields = {"shopper_id": Int64, "good_id": Int64, "returned": Bool}
    repo.view("orders", [order], fields, repo.source("orders", orders))
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    assert settings.feast.events_view == "orders"
    assert (settings.features.interaction.type_field, settings.features.interaction.negative_types) == (
        "returned",
        ["true"],
    )
    assert find_faults(open_store(settings.feast.repo), settings) == []
    with pytest.raises(ConfigError, match="exists already"):
        init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    turned = LayoutOptions(user_column="good_id", item_column="shopper_id")
    made = init_from_feast(tmp_path / "turned", tmp_path / "theirs" / "repo", turned)
    assert yaml.safe_load(made.settings.read_text())["feast"]["user_key"] == "good_id"
    for wishes, said in (
        (LayoutOptions(events_view="order"), "did you mean 'orders'"),
        (LayoutOptions(user_column="buyer"), "--user-column buyer: .* no such column"),
        (LayoutOptions(type_field="kind"), "--type-column kind: the events have the fields 'returned'"),
    ):
        with pytest.raises(ConfigError, match=said):
            init_from_feast(tmp_path / "wrong", tmp_path / "theirs" / "repo", wishes)


@pytest.mark.parametrize(("name", "used"), [("liked", True), ("is_mobile", False)])
def test_a_dislike_that_is_a_boolean_is_negative(tmp_path, make_repo, name, used):
    random = np.random.default_rng(8)
    repo = Repo(tmp_path / "theirs")
    viewer, film = entity("viewer", "userid"), entity("film", "movie_id")
    repo.view("viewers", [viewer], {"age": Int64}, repo.source("viewers", people(random, "userid")))
    repo.view("films", [film], {"age": Int64}, repo.source("films", people(random, "movie_id")))
    seen = events(random, "userid", "movie_id")
    repo.view(
        "seen", [viewer, film], {name: Bool}, repo.source("seen", seen.assign(**{name: random.random(4 * N) < 0.7}))
    )
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    assert settings.features.interaction.value_field == (name if used else None)
    (said,) = (choice for choice in made.choices if choice.what == name)
    assert ("values at or below 0 count as negative" in said.why) == used
    assert find_faults(open_store(settings.feast.repo), settings) == []


def test_a_corrected_event_counts_once_and_its_last_row_decides(tmp_path, make_repo):
    """Every last event of a user was corrected: counted twice, all users would end with an item that they had."""
    random = np.random.default_rng(5)
    repo = Repo(tmp_path / "theirs")
    viewer, film = entity("viewer", "userid"), entity("film", "movie_id")
    repo.view("viewers", [viewer], {"age": Int64}, repo.source("viewers", people(random, "userid")))
    repo.view("films", [film], {"age": Int64}, repo.source("films", people(random, "movie_id")))
    rated = events(random, "userid", "movie_id").drop_duplicates(["userid", "movie_id"])
    rated = rated.assign(rating=9.0, created=rated.event_timestamp + pd.Timedelta("2h"))
    older = rated.groupby("userid").tail(1).assign(rating=1.0, created=lambda rows: rows.event_timestamp)
    both = pd.concat([rated, older], ignore_index=True)
    source = repo.source("ratings", both, created_timestamp_column="created")
    repo.view("ratings", [viewer, film], {"rating": Float32}, source)
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    assert made.events == len(rated)
    assert settings.candidates.exclude_seen
    (rating,) = (choice for choice in made.choices if choice.what == "rating")
    assert rating.why.startswith("rating 9 to 9"), "no value of a corrected row counts"


def test_files_that_do_not_go_together_are_named(tmp_path, make_repo):
    repo = films(tmp_path / "theirs", np.random.default_rng(6))
    folder = tmp_path / "theirs" / "data" / "mixed"
    folder.mkdir()
    rows = people(np.random.default_rng(6), "movie_id")
    rows.to_parquet(folder / "0.parquet", index=False)
    rows.assign(age="old").to_parquet(folder / "1.parquet", index=False)
    source = FileSource(name="mixed", path=str(folder), timestamp_field="event_timestamp")
    repo.view("mixed", [entity("film", "movie_id")], {"age": Int64}, source)
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    with pytest.raises(SchemaError, match=r"column 'age' is (int64|string) in one of its files and (int64|string) in"):
        init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")


def test_a_repository_without_users_says_so(tmp_path, make_repo):
    repo = films(tmp_path / "theirs", np.random.default_rng(7))
    repo.objects = [each for each in repo.objects if each.name != "viewer_features"]
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    with pytest.raises(ConfigError, match="no view is keyed by 'userid' alone, and without one there are no users"):
        init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")


def test_a_repository_without_events_says_what_it_has(tmp_path, make_repo):
    repo = Repo(tmp_path / "theirs")
    repo.view(
        "users", [entity("user", "uid")], {"age": Int64}, repo.source("users", people(np.random.default_rng(4), "uid"))
    )
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    with pytest.raises(ConfigError, match=r"no events to learn from; its views and their keys are users: uid"):
        init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    assert not (tmp_path / "shop").exists()


@pytest.mark.usefixtures("processes")
def test_tables_of_a_database_are_understood_as_files_are(tmp_path, make_repo, postgresql):
    """Rows come through the offline store, a stretch of time at a time."""
    made_here = TableRepo(tmp_path / "theirs", postgresql.engine(postgresql.database))
    repo = films(tmp_path / "theirs", np.random.default_rng(0), made_here)
    offline = {key: value for key, value in postgresql.online_store().items() if key != "vector_enabled"}
    make_repo(tmp_path / "theirs" / "repo", repo.objects, offline=offline)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    assert (made.events, settings.feast.events_view) == (4 * N, "ratings")
    assert {name: each.kind for name, each in settings.features.user.items()} == {
        "age": "numeric",
        "town": "categorical",
    }
    assert {name: each.kind for name, each in settings.features.item.items()} == {
        "title": "text",
        "genres": "categories",
    }
    store = open_store(settings.feast.repo)
    assert find_faults(store, settings) == []
    # As a run reads them: ids are keys of a correction too, and each column is pulled once.
    source = event_source(read_registry(store), settings.feast, settings.features)
    parts = [read_slice(portable_config(store), part) for part in slice_source(store, source, N)]
    assert sum(part.num_rows for part in parts) == 4 * N


def test_a_view_computed_from_two_views_is_known_from_the_time_of_the_later_one(tmp_path, make_repo):
    """Rows of the second view begin after those of the first: sampled as of the first, every value would be null."""
    random = np.random.default_rng(9)
    repo = films(tmp_path / "theirs", random)
    viewer = entity("viewer", "userid")
    habits = people(random, "userid").drop(columns="age").assign(hours=random.random(N), event_timestamp=START)
    habits = repo.view("habits", [viewer], {"hours": Float64}, repo.source("habits", habits))
    viewers = next(each for each in repo.objects if each.name == "viewer_features")

    @on_demand_feature_view(sources=[viewers, habits], schema=[Field(name="hours_per_year", dtype=Float64)])
    def ratio(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"hours_per_year": inputs["hours"] / inputs["age"]})

    make_repo(tmp_path / "theirs" / "repo", [*repo.objects, ratio])
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    assert load_settings(made.settings).features.user["hours_per_year"].kind == "numeric"


def test_ids_that_do_not_match_are_warned_of(tmp_path, make_repo):
    """Numbers in the events, text with zeros in front in the view of users: no user has a feature."""
    random = np.random.default_rng(10)
    repo = Repo(tmp_path / "theirs")
    learner, course = entity("learner", "learner", ValueType.STRING), entity("course", "course")
    padded = people(random, "learner").assign(learner=lambda rows: rows.learner.map("{:06d}".format))
    repo.view("learners", [learner], {"age": Int64}, repo.source("learners", padded))
    repo.view("courses", [course], {"age": Int64}, repo.source("courses", people(random, "course")))
    starts = repo.source("starts", events(random, "learner", "course").assign(progress=random.random(4 * N)))
    repo.view("starts", [learner, course], {"progress": Float64}, starts)
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    (said,) = made.warnings
    assert "user ids in the events have nothing in the feature store: events have '1', the feature store has" in said


def two_event_views(folder, random):
    """Two views with two ids, and ids whose names say nothing."""
    repo = Repo(folder)
    left, right = entity("a", "a"), entity("b", "b")
    repo.view("of_a", [left], {"age": Int64}, repo.source("of_a", people(random, "a")))
    repo.view("of_b", [right], {"age": Int64}, repo.source("of_b", people(random, "b").head(N // 2)))
    many = events(random, "a", "b").assign(b=lambda rows: rows.b % (N // 2) + 1, seconds=random.random(4 * N))
    repo.view("many", [left, right], {"seconds": Float64}, repo.source("many", many))
    repo.view("few", [left, right], {"seconds": Float64}, repo.source("few", many.head(N)))
    return repo


def test_ambiguous_decisions_are_asked_on_a_terminal(tmp_path, make_repo):
    repo = two_event_views(tmp_path / "theirs", np.random.default_rng(11))
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    asked = []

    def ask(question):
        asked.append(question)
        return {"--events-view": "few", "--user-column": "b"}[question.option]

    made = init_from_feast(tmp_path / "asked", tmp_path / "theirs" / "repo", ask=ask)
    assert [(question.guess, question.choices) for question in asked] == [("many", ("many", "few")), ("a", ("a", "b"))]
    feast = load_settings(made.settings).feast
    assert (feast.events_view, feast.user_key, feast.item_key) == ("few", "b", "a")
    assert "your answer" in {choice.why for choice in made.choices}
    made = init_from_feast(tmp_path / "decided", tmp_path / "theirs" / "repo")
    feast = load_settings(made.settings).feast
    assert (feast.events_view, feast.user_key, feast.item_key) == ("many", "a", "b")


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("more", "answers", "events_view"), [((), "nine\nfew\n\n", "few"), (("--yes",), "", "many")])
def test_the_command_asks_on_a_terminal_and_yes_takes_the_decisions(tmp_path, make_repo, more, answers, events_view):
    repo = two_event_views(tmp_path / "theirs", np.random.default_rng(11))
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    command = [sys.executable, "-m", "rec_ray.cli", "init", str(tmp_path / "shop")]
    code, said = type_into([*command, "--feast", str(tmp_path / "theirs" / "repo"), *more], answers)
    assert code == 0, said
    assert ("Which view has the events" in said) == ("'nine' is none of them" in said) == (not more)
    assert load_settings(tmp_path / "shop" / "rec_ray.yaml").feast.events_view == events_view


def type_into(command, answers):
    """Run a command on a pseudo terminal with these answers; return its exit code and what it printed."""
    terminal, other = pty.openpty()
    with subprocess.Popen(command, stdin=other, stdout=other, stderr=other, close_fds=True) as running:
        os.close(other)
        os.write(terminal, answers.encode())
        said = b""
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while part := os.read(terminal, 4096):
                said += part
    os.close(terminal)
    return running.returncode, " ".join(said.decode().split())


def test_views_to_publish_to_are_written_with_the_project(tmp_path, make_repo, capsys):
    from rec_ray.cli.main import main

    repo = films(tmp_path / "theirs", np.random.default_rng(0))
    place, shop = tmp_path / "theirs" / "repo", tmp_path / "shop"
    make_repo(place, repo.objects)
    assert main(["init", str(shop), "--feast", str(place), "--publish-views"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        f"Views to publish to: {place / 'rec_ray_views.py'}",
        f"Next: rec-ray feast-views -C {shop} --apply && rec-ray run -C {shop}",
    ]
    compile((place / "rec_ray_views.py").read_text(), "rec_ray_views.py", "exec")
    assert "user_items" not in read_registry(open_store(place)).views, "only --apply adds them"
