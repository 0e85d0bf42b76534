import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from rec_ray.config import EvaluationSettings, FeastSettings, FeatureSettings, InteractionSettings
from rec_ray.config.loading import load_settings
from rec_ray.errors import EmptyDataError, SchemaError
from rec_ray.retrieval.features.catalogue import CATALOGUE
from rec_ray.retrieval.features.timelines import TIMELINES
from rec_ray.schema import FeatureDeclaration, Split
from rec_ray.storage.object_store import open_storage

TRAIN, VALIDATION, TEST = Split

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2025, 1, 1, tzinfo=UTC)
CITIES = [None, "Rome", "Oslo", "Bern", "Riga", "Wien"]


def day(number):
    return START + timedelta(days=number)


def load(store, features, evaluation, as_of=NOW):
    from rec_ray.data.load_features import load_features

    return load_features(store, FeastSettings(), features, evaluation, as_of)


def prepare(tables, features, split, folder):
    from rec_ray.data.training_data import prepare_training_data

    return prepare_training_data(tables, features, split, open_storage(str(folder)), "data")


def prepare_project(project, **evaluation):
    """Load and prepare a project; return what `prepare_training_data` gives."""
    from rec_ray.runs.context import open_feature_store

    settings = load_settings(project / "rec_ray.yaml", environ={})
    evaluation = settings.evaluation.model_copy(update=evaluation)
    tables = load(open_feature_store(settings), settings.features, evaluation)
    return prepare(tables, settings.features, evaluation.split, project / "store")


def table_at(folder, schema):
    table = pq.read_table(folder)
    assert table.schema.equals(schema)
    return table


def items_at(folder):
    """Return the items of an encoded catalogue by their index."""
    rows = table_at(folder, CATALOGUE).sort_by("item_index").to_pylist()
    assert [row["item_index"] for row in rows] == list(range(1, len(rows) + 1))
    return {row["item_index"]: row for row in rows}


def number(values, place, scale):
    """Decode a number: its standardised value and whether it is missing stand side by side."""
    mean, deviation = scale
    return None if values[2 * place + 1] else round(values[2 * place] * deviation + mean, 3)


def test_what_training_sees_is_what_was_worked_out_by_hand(hand_worked, tmp_path):
    """Feast and its DuckDB store, the join, the encoding; read back from the stored timelines."""
    tables = load(hand_worked.store, hand_worked.features, hand_worked.evaluation, hand_worked.as_of)
    data = prepare(tables, hand_worked.features, "time", tmp_path)
    items = items_at(data.catalogue)
    users = data.preprocessor.users
    kinds = [None, *data.preprocessor.event_types]
    assert kinds == [None, "buy"]
    found, splits = {}, {}
    for row in table_at(data.timelines, TIMELINES).to_pylist():
        numeric = np.array(row["user_numeric"]).reshape(-1, 4)
        cities = [number(values, 0, users.scales["city_number"]) for values in numeric]
        plans = [number(values, 1, users.scales["plan"]) for values in numeric]
        states = [
            (None if city is None else CITIES[1 + int(city)], plan) for city, plan in zip(cities, plans, strict=True)
        ]
        assert all(state != after for state, after in itertools.pairwise(states)), "a state is stored when it changes"
        days = [(second - START.timestamp()) / 86_400 for second in row["event_seconds"]]
        names = [items[index]["item_id"] for index in row["item_index"]]
        places = [*zip(days, names, strict=True), ("validation", None), ("test", None), ("now", None)]
        found[row["user_id"]] = [
            (*place, *states[state]) for place, state in zip(places, row["feature_row"], strict=True)
        ]
        splits[row["user_id"]] = row["split"]
        assert set(row["event_type"]) <= {1}
        assert set(row["weight"]) <= {1.0}
    assert found == hand_worked.expected
    assert splits == {
        "a": [TRAIN, TRAIN, VALIDATION, VALIDATION, VALIDATION, TEST],
        "b": [TRAIN, TEST, TEST],
        "c": [],
        "d": [TRAIN],
    }
    # Only what was known of training events is fitted: nobody was in another city then.
    assert users.vocabularies == {"city": ("Rome",)}
    assert users.scales["plan"] == pytest.approx((20.0, np.std([10, 20, 30])))
    assert (data.users, data.items, data.events, data.positives) == (4, 4, 10, 4)


def test_catalogues_show_the_items_as_of_the_test_and_as_of_now(hand_worked, tmp_path):
    tables = load(hand_worked.store, hand_worked.features, hand_worked.evaluation, hand_worked.as_of)
    data = prepare(tables, hand_worked.features, "time", tmp_path)
    scale = data.preprocessor.items.scales["price"]

    def seen(folder):
        return [
            (row["item_id"], number(row["item_numeric"], 0, scale), row["known"], row["count"])
            for row in items_at(folder).values()
        ]

    # An item's own row is learned from training events only: two of x and two of y.
    assert seen(data.catalogue) == [
        ("new", None, False, 0),
        ("x", 7.0, True, 2),
        ("y", 2.0, True, 2),
        ("z", 3.0, True, 0),
    ]
    assert seen(data.catalogue_now)[0] == ("new", 4.0, True, 0)
    assert seen(data.catalogue_now)[1:] == seen(data.catalogue)[1:]
    assert scale == pytest.approx((4.0, np.std([7, 2, 3]))), "fitted as of the test: no price that came later"


def test_leave_one_out_has_each_item_once_in_both_catalogues_however_large_blocks_are(hand_worked, tmp_path):
    """Both instants are the same then, and a block is taken in halves: it must not be cut."""
    context = ray.data.DataContext.get_current()
    before, context.target_max_block_size = context.target_max_block_size, 64
    try:
        evaluation = EvaluationSettings(split="leave_one_out")
        tables = load(hand_worked.store, hand_worked.features, evaluation, hand_worked.as_of)
        data = prepare(tables, hand_worked.features, "leave_one_out", tmp_path)
    finally:
        context.target_max_block_size = before
    for folder in (data.catalogue, data.catalogue_now):
        assert [row["item_id"] for row in items_at(folder).values()] == ["new", "x", "y", "z"]
    timelines = {row["user_id"]: row for row in table_at(data.timelines, TIMELINES).to_pylist()}
    assert {user: row["split"] for user, row in timelines.items()} == {
        "a": [TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, TEST],
        "b": [TRAIN, VALIDATION, TEST],
        "c": [],
        "d": [TRAIN],
    }


def odd_shop():
    """Rows that no shop should have; user 日本 🛒 and a very long item are as good as any."""
    long = "x" * 3000
    rows = [
        # user, item, kind, rating, day
        ("日本 🛒", long, "rate", 4.0, 0),
        ("日本 🛒", long, "rate", 4.0, 0),  # the same again in every column: counted once
        ("日本 🛒", long, "rate", 2.0, 0),  # another rating at the same time: another event
        ("stranger", "thing", "rate", float("inf"), 1),
        ("stranger", "no such thing", "rate", 5.0, 2),
        ("known", "thing", "rate", float("nan"), 3),
        ("known", "thing", "rate", None, 4),
        ("known", long, None, 5.0, 5),
        ("known", "thing", "skip", 5.0, 6),
        ("known", "thing", "rate", 5.0, 300),
    ]
    users, items, kinds, ratings, days = zip(*rows, strict=True)
    return {
        "interactions": {
            "user_id": list(users),
            "item_id": pa.array(items).dictionary_encode(),
            "interaction_type": list(kinds),
            "rating": pa.array(ratings, pa.float64()),
            "event_timestamp": [day(number) for number in days],
        },
        "users": {"user_id": ["known", "日本 🛒"], "age": [float("nan"), 30.0], "income": [float("inf"), 10.0]},
        "items": {"item_id": ["thing", long], "price": [float("-inf"), 1.0]},
    }


def test_odd_values_are_counted_and_said_and_nothing_that_is_not_finite_is_learned_from(tmp_path, make_project, caplog):
    project = make_project(
        tmp_path,
        **odd_shop(),
        settings={
            "features": {
                "user": {"age": {"kind": "numeric"}, "income": {"kind": "numeric"}},
                "item": {"price": {"kind": "numeric"}},
                "interaction": {"type_field": "interaction_type", "value_field": "rating", "negative_types": ["skip"]},
            }
        },
    )
    data = prepare_project(project)
    assert data.facts["duplicates"] == 1
    assert data.facts["unknown_items"] == 1
    assert data.facts["bad_values"] == 2
    assert data.events == 10 - 1 - 1
    assert "1 interactions with items that are not in the catalogue are left out" in caplog.messages
    assert "1 interactions that repeat another one in every column are counted once" in caplog.messages
    assert "2 ratings that are not finite count as missing" in caplog.messages
    timelines = {row["user_id"]: row for row in table_at(data.timelines, TIMELINES).to_pylist()}
    assert set(timelines) == {"日本 🛒", "stranger", "known"}
    assert timelines["日本 🛒"]["weight"] == pytest.approx([0.8, 0.4])
    assert timelines["stranger"]["weight"] == [1.0]
    assert timelines["known"]["weight"] == [1.0, 1.0, 1.0, 0.0, 1.0]
    items = items_at(data.catalogue)
    for rows, name in ((timelines.values(), "user_numeric"), (items.values(), "item_numeric")):
        assert np.isfinite(np.concatenate([row[name] for row in rows])).all()
    assert {row["item_id"]: row["item_numeric"] for row in items.values()}["thing"] == [0.0, 1.0]


def test_a_crawler_and_dislikes_are_named_and_teach_no_more_than_others(tmp_path, make_project, caplog):
    bot, people = 300, 100
    project = make_project(
        tmp_path,
        interactions={
            "user_id": ["7"] * bot + [f"p{n % 20}" for n in range(people)],
            "item_id": ["bait"] * bot + [f"i{n % 10}" for n in range(people)],
            "interaction_type": ["view"] * bot + ["remove_from_cart"] * 2 + ["view"] * (people - 2),
            "rating": [1.0] * (bot + people - 10) + [-1.0] * 10,
            "event_timestamp": [day(n) for n in range(bot)] + [day(n * 3) for n in range(people)],
        },
        settings={
            "features": {
                "interaction": {
                    "type_field": "interaction_type",
                    "value_field": "rating",
                    "events_per_user": 20,
                    "exclude_users": ["p0"],
                }
            },
        },
    )
    data = prepare_project(project)
    assert data.rows.of_excluded_users == people // 20
    assert data.notes == (
        "events of the type 'remove_from_cart' (1) are learned as positives; if they are negative, set "
        "features.interaction.negative_types: [remove_from_cart]",
        "user '7' has 300 of 395 events (76%); training learns from the newest 20 "
        "(features.interaction.events_per_user). If it is a crawler or a shared account, set "
        "features.interaction.exclude_users: ['7']",
    )
    assert set(data.notes) <= set(caplog.messages)
    assert "of 400 interactions 5 are left out: 5 with users of features.interaction.exclude_users" in caplog.text
    timelines = {row["user_id"]: row for row in table_at(data.timelines, TIMELINES).to_pylist()}
    assert "p0" not in timelines
    counts = {row["item_id"]: row["count"] for row in items_at(data.catalogue_now).values()}
    assert counts["bait"] == 20, "popularity counts what an epoch learns from"


def test_only_negative_events_are_an_error_that_says_which_types_there_are(tmp_path, make_project):
    project = make_project(
        tmp_path,
        interactions={
            "user_id": ["a", "b"] * 20,
            "item_id": ["x"] * 40,
            "interaction_type": ["skip", "skip", "hide", "hide"] * 10,
            "event_timestamp": [day(number) for number in range(40)],
        },
        settings={
            "features": {"interaction": {"type_field": "interaction_type", "negative_types": ["skip", "hide"]}},
        },
    )
    expected = (
        r"no positive event .* event types are \{.*'hide': 20.*\}, of which .*'skip', 'hide'.* are declared negative"
    )
    with pytest.raises(EmptyDataError, match=expected):
        prepare_project(project)


def test_one_user_and_one_item_are_enough_to_prepare(tmp_path, make_project):
    project = make_project(
        tmp_path,
        interactions={"user_id": ["a"] * 4, "item_id": ["x"] * 4, "event_timestamp": [day(n) for n in range(4)]},
    )
    data = prepare_project(project, split="leave_one_out")
    (row,) = table_at(data.timelines, TIMELINES).to_pylist()
    assert row["item_index"] == [1, 1, 1, 1]
    assert row["split"] == [TRAIN, TRAIN, VALIDATION, TEST]
    assert len(items_at(data.catalogue)) == 1


def test_newer_tables_are_encoded_as_the_model_learned_to_read_them(hand_worked, tmp_path):
    """Nothing is fitted again: a model of the first days meets an item, a type and users it does not know."""
    from rec_ray.data.training_data import encode_tables

    early = EvaluationSettings(test_fraction=0.3, validation_fraction=0.1)
    model = prepare(
        load(hand_worked.store, hand_worked.features, early, day(4)), hand_worked.features, "time", tmp_path / "early"
    )
    assert tuple(model.preprocessor.item_ids) == ("x", "y")
    tables = load(hand_worked.store, hand_worked.features, hand_worked.evaluation, hand_worked.as_of)
    data = encode_tables(
        tables, model.preprocessor, hand_worked.features, "time", open_storage(str(tmp_path / "late")), "data"
    )
    assert data.preprocessor is model.preprocessor
    items = items_at(data.catalogue_now)
    assert {row["item_id"]: row["id_index"] for row in items.values()} == {"new": 0, "x": 1, "y": 2, "z": 0}
    assert (data.users, data.items, data.events) == (4, 4, 10)


def test_a_feature_that_cannot_be_read_as_its_kind_is_named(hand_worked, tmp_path):
    features = FeatureSettings(
        user={"city": FeatureDeclaration("numeric")}, interaction=InteractionSettings(type_field="kind")
    )
    tables = load(hand_worked.store, features, hand_worked.evaluation, hand_worked.as_of)
    with pytest.raises(SchemaError, match="city"):
        prepare(tables, features, "time", tmp_path)


def test_the_profile_of_the_data_is_stored_beside_them(tiny_data):
    from rec_ray.retrieval.profiles.data_profile import DataProfile

    data, features = tiny_data.data, tiny_data.settings.features
    profile = DataProfile.from_json(tiny_data.storage.read_bytes(data.profile), data.profile)
    assert (profile.users.total, profile.items.total, profile.kept) == (data.users, data.items, data.rows.kept)
    assert (set(profile.user_features), set(profile.item_features)) == (set(features.user), set(features.item))
    assert profile.as_of == int(data.split_times.as_of.timestamp()) > profile.newest > profile.oldest > 0
    assert len(profile.sources) == 2, "the files of users and items name their newest rows"
