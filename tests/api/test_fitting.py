"""`fit` learns the groups of the tiny tables from frames of any kind, and refuses unusable ones in one line."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from rec_ray import Recommender, fit
from rec_ray.errors import ConfigError, DataError, EmptyDataError, RecRayError

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=101)
QUICK = {
    "model": {"embedding_size": 8, "history": "mean"},
    "train": {"epochs": 1, "refit": "off", "uniform_negatives": 4},
    "now": NOW,
}

pytestmark = pytest.mark.usefixtures("processes")


def events(rows: int = 40, users: int = 5, items: int = 6, **columns) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "user_id": [f"u{n % users}" for n in range(rows)],
            "item_id": [f"i{(n * 7) % items}" for n in range(rows)],
            "event_timestamp": [START + timedelta(hours=n) for n in range(rows)],
        }
    )
    return frame.assign(**columns)


def test_it_learns_what_the_pipeline_learns(fitted):
    metrics = fitted.model.evaluate()
    assert metrics.users > 80 and metrics.beats_popularity
    model, popularity = metrics.metrics["model"], metrics.metrics["popularity"]
    assert model["ndcg@10"] > 2 * popularity["ndcg@10"] and model["recall@10"] > 0.5
    assert set(metrics.metrics) == {"model", "popularity", "item_knn", "item_transitions"}
    low, high = metrics.intervals["model"]["ndcg@10"]
    assert low < model["ndcg@10"] < high
    assert f"{model['ndcg@10']:.4f}" in str(metrics) and "popularity" in str(metrics)
    groups = [int(item[1:]) % 4 for item in fitted.model.recommend(user_id="u3", k=5).item_ids]
    assert groups.count(3) >= 4
    assert [int(item[1:]) % 4 for item in fitted.model.similar("i5", 3).item_ids].count(1) >= 2
    assert fitted.model.settings.features.user["taste"].kind == "categorical"
    assert fitted.model.settings.features.item["name"].kind == "text"
    assert fitted.model.settings.features.interaction.negative_types == ["negative_view"]
    assert fitted.model.bundle is not fitted.model.evaluated


def test_the_encoded_data_are_those_of_the_pipeline(tiny_data):
    """The same rows through Feast, Ray and the project of `rec-ray init`: equal timelines, splits and vocabularies."""
    import pyarrow.parquet as pq

    own = tiny_data.project.parent / "own"
    tables = {name: pq.read_table(own / f"{name}.parquet") for name in ("users", "items", "interactions")}
    interactions = tables["interactions"]
    users, items = (tables[name].drop_columns("event_timestamp") for name in ("users", "items"))
    features = tiny_data.settings.features
    model = fit(
        interactions,
        users,
        items,
        now=NOW,
        train={"epochs": 1, "refit": "full", "refit_check": False},
        model={"history": "mean", "embedding_size": 8},
        features={"interaction": features.interaction.model_dump()},
    )
    preprocessor, expected = model.bundle.preprocessor, tiny_data.data.preprocessor
    assert (preprocessor.item_ids, preprocessor.event_types) == (expected.item_ids, expected.event_types)
    assert preprocessor.users.vocabularies == expected.users.vocabularies
    assert {**model.settings.features.user, **model.settings.features.item} == {**features.user, **features.item}
    stored = pq.read_table(tiny_data.data.timelines, filesystem=tiny_data.storage.filesystem).sort_by("user_id")
    fitted_timelines = model._encoded.timelines.sort_by("user_id")
    for name in ("user_id", "item_index", "event_type", "event_seconds", "weight", "split"):
        assert fitted_timelines[name].to_pylist() == stored[name].to_pylist(), name


def test_random_numbers_and_threads_of_the_caller_stay(fitted):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    first = fit(events(), **QUICK)
    assert torch.equal(torch.rand(1), expected) and torch.get_num_threads() == threads
    again = fit(events(), **QUICK)
    assert first.recommend(user_id="u1") == again.recommend(user_id="u1")


@pytest.mark.parametrize(
    ("changed", "arguments", "error", "said"),
    [
        (
            events().drop(columns="item_id"),
            {},
            DataError,
            "interactions has no column 'item_id'; it has 'user_id', 'ev",
        ),
        (events(), {"time_column": "bought_at"}, DataError, "no column 'bought_at'"),
        (events(), {"user_column": "item_id"}, DataError, "must be three columns"),
        (events(user_id=None), {}, DataError, "40 of 40 ids in 'user_id' are null"),
        (events(item_id=1.5), {}, DataError, "the ids in 'item_id' are double"),
        (events(event_timestamp=datetime(2024, 1, 1)), {}, DataError, "have no time zone; name it with timezone='UTC'"),
        (events(event_timestamp="2024-01-01"), {}, DataError, "'event_timestamp' holds string"),
        (events(0), {}, DataError, "interactions is empty"),
        (events(), {"now": START - timedelta(days=1)}, DataError, "no usable interaction among 40 rows"),
        (events(), {"now": datetime(2024, 1, 1)}, ConfigError, "now has no time zone"),
        (events(), {"epochs": {}}, ConfigError, "fit takes no argument 'epochs'; sections are 'features', 'model'"),
        (events(), {"train": 3}, ConfigError, "train takes a mapping of settings"),
        (events(), {"candidates": {"segment": "age"}}, ConfigError, "candidates.segment: fit has no such choice"),
        (events(), {"train": {"epoch": 3}}, ConfigError, "train.epoch: Extra inputs are not permitted"),
        (events(), {"model": {"embedding_size": 7, "history": "auto"}}, ConfigError, "not a multiple of model.heads"),
        (events(), {"features": {"text_encoder": "transformers:x"}}, ConfigError, "fit has no such choice"),
        (events(), {"users": {"user_id": ["u1", "u1"]}}, DataError, "users: 1 of 2 rows repeat an id"),
        (events(), {"users": {"id": ["u1"]}}, DataError, "users has no column 'user_id'; it has 'id'. Name the column"),
        (events(), {"items": {"item_id": [None]}}, DataError, "1 of 1 ids in 'item_id' are null"),
        (events(), {"type_column": "kind"}, DataError, "no column 'kind'"),
        (events(kind=3), {"type_column": "kind"}, DataError, "type_column 'kind' holds int64; expected strings"),
        (
            events(interaction_type="return"),
            {},
            EmptyDataError,
            "of which ['return'] are declared negative",
        ),
        (
            events(),
            {"features": {"user": {"age": {"kind": "numeric"}}}},
            DataError,
            "features.user names the field 'age', which users lacks",
        ),
    ],
)
def test_unusable_frames_are_one_line(changed, arguments, error, said):
    with pytest.raises(error) as raised:
        fit(changed, **{**QUICK, **arguments})
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "convert",
    [
        lambda frame: frame,
        lambda frame: pa.Table.from_pandas(frame),
        lambda frame: frame.to_dict("records"),
        lambda frame: frame.astype({"user_id": "category", "item_id": "string"}),
        lambda frame: frame.assign(event_timestamp=frame.event_timestamp.dt.tz_convert("Asia/Tokyo")),
    ],
    ids=["pandas", "arrow", "rows", "categorical", "zone"],
)
def test_frames_of_every_kind_give_the_same_model(convert):
    expected = fit(events(), **QUICK).recommend(user_id="u2")
    assert fit(convert(events()), **QUICK).recommend(user_id="u2") == expected


def test_numbers_as_ids_and_features_of_odd_types(tmp_path):
    """Whole numbers, decimals, nullable and dated columns; a category and an item that the fit never saw."""
    frame = events().assign(
        user_id=lambda f: f.user_id.str[1:].astype("int64"), item_id=lambda f: f.item_id.str[1:].astype("Int64")
    )
    users = pa.table(
        {
            "user_id": [0, 1, 2, 3],
            "income": pa.array([1, 2, 3, None], pa.decimal128(9, 2)),
            "joined": pa.array([START.date()] * 2 + [NOW.date()] * 2),
            "member": pa.array([True, False, None, True]),
            "note": pa.array([b"x"] * 4),
        }
    )
    items = pd.DataFrame(
        {
            "item_id": range(7),
            "kind": pd.Categorical(["ä", "b"] * 3 + [None]),
            "stock": pd.array([1, None] * 3 + [3], "Int64"),
        }
    )
    model = fit(frame, users, items, **QUICK)
    kinds = {name: declared.kind for name, declared in model.settings.features.user.items()}
    assert kinds == {"income": "numeric", "joined": "timestamp", "member": "categorical"}
    assert model.recommend(user_id=4).item_ids == model.recommend(user_id="4").item_ids
    model.save(str(tmp_path / "store"))
    opened = Recommender.open(str(tmp_path / "store"))
    assert opened.recommend(user_id=2).item_ids == model.recommend(user_id=2).item_ids
    assert len(opened.recommend(history=[1, 99, np.int64(2)], k=50)) == 5
    strange = opened.recommend(history=[1], features={"member": None, "income": 10**9, "joined": START})
    assert len(strange) == 6 and opened.similar(6, 50).item_ids[0] in {str(n) for n in range(6)}
    assert opened.embed_items({"item_id": [7], "kind": ["never seen"], "stock": [None]}).shape == (1, 8)


@pytest.mark.parametrize(
    ("frame", "most"),
    [
        (events(items=2), 2),
        (events(users=1), 6),
        (pd.concat([events()] * 3), 6),
        (events(1), 1),
        (events(2, users=1, items=1), 1),
    ],
    ids=["two items", "one user", "repeats", "one event", "one item"],
)
def test_small_frames_give_a_model_or_one_line(frame, most):
    try:
        model = fit(frame, **QUICK)
    except RecRayError as error:
        assert "\n" not in str(error) and len(frame) < 3
        return
    assert len(model.recommend(history=["nothing"], k=100)) == most
    assert len(model.recommend(user_id="u0", k=100)) <= most
    model.evaluate()


def test_ids_of_another_spelling_are_warned_of(caplog):
    fit(events(), {"user_id": ["U1", "U2"], "age": [3, 4]}, {"item_id": [f"i{n}" for n in range(6)]}, **QUICK)
    said = [each.getMessage() for each in caplog.records if "have no row in" in each.getMessage()]
    assert said == [
        "5 of 5 ids in the interactions have no row in users: the interactions have 'u0', users has 'U1'; "
        "write the ids in one way in both"
    ]
