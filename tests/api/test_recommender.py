"""A recommender answers as the batch did, for every user, and refuses what does not belong together."""

import json
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rec_ray import Recommender
from rec_ray.errors import BundleError, ConfigError, DataError, SchemaError

TINY_START = datetime(2024, 1, 1, tzinfo=UTC)


def history_of(tables, user):
    events = tables["interactions"].filter(pc.equal(tables["interactions"]["user_id"], user))
    return events.select(["item_id", "event_timestamp", "interaction_type"]).rename_columns(
        ["item_id", "event_timestamp", "event_type"]
    )


def features_of(tables, user):
    row = tables["users"].filter(pc.equal(tables["users"]["user_id"], user)).to_pylist()[0]
    return {"taste": row["taste"], "age": row["age"]}


@pytest.fixture(scope="module")
def opened(fitted):
    return Recommender.open(str(fitted.store))


def test_a_history_gives_the_stored_list_of_every_user(fitted, opened):
    users = fitted.tables["users"]["user_id"].to_pylist()
    assert len(users) == 202
    for user in users:
        stored = opened.recommend(user_id=user, k=20)
        own = opened.recommend(history=history_of(fitted.tables, user), features=features_of(fitted.tables, user), k=20)
        assert own.method == stored.method == ("popularity" if user == "nobody" else "model")
        assert own.item_ids == stored.item_ids
        assert np.allclose(own.scores, stored.scores, atol=1e-6)
        assert fitted.model.recommend(user_id=user, k=20).item_ids == stored.item_ids


def test_the_lists_are_those_of_the_batch_on_ray(tiny_data, tmp_path):
    """The candidates step of the pipeline computes all lists; the recommender, from the raw events, the same ones."""
    from dataclasses import replace

    from rec_ray.candidates.generate import generate_candidates
    from rec_ray.storage.live_pointer import write_live
    from rec_ray.storage.model_store import candidates_folder, save_model
    from rec_ray.storage.object_store import open_storage

    storage = open_storage(str(tmp_path / "served"))
    settings = tiny_data.settings.model_dump(mode="json")
    bundle = replace(tiny_data.bundle, metadata={"run_id": "tiny", "settings": settings})
    save_model(bundle, "7", storage)
    generate_candidates(
        tiny_data.data, bundle, tiny_data.settings.candidates, storage, version="7", prefix=candidates_folder("7")
    )
    write_live(storage, "7")
    served = Recommender.open(str(tmp_path / "served"))
    own = tiny_data.project.parent / "own"
    users, events = (pd.read_parquet(own / f"{name}.parquet") for name in ("users", "interactions"))
    names = tiny_data.bundle.preprocessor.users.names
    assert len(users) == 202 and "taste" in names
    for row in users.to_dict("records"):
        history = events[events.user_id == row["user_id"]].rename(columns={"interaction_type": "event_type"})
        found = served.recommend(history=history, features={name: row[name] for name in names}, k=20)
        stored = served.recommend(user_id=row["user_id"], k=20)
        assert (found.item_ids, found.method) == (stored.item_ids, stored.method), row["user_id"]
        assert np.allclose(found.scores, stored.scores, atol=1e-6)


def test_timelines_are_those_of_the_pipeline(fitted, opened):
    """Ties, repeats, unknown items and types, values: the quick reader and the encoder of blocks agree."""
    from rec_ray.api.history import HistoryReader
    from rec_ray.config import InteractionSettings
    from rec_ray.data.events import as_events, with_query_rows
    from rec_ray.retrieval.features.encoding import Labelling, encode_timelines, label_events
    from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, Preprocessor

    nothing = FeaturePreprocessor({}, {}, {})
    types = ("view", "view (disliked)", "buy", "return", "(disliked)")
    preprocessor = Preprocessor(nothing, nothing, ("a", "b", "c"), types)
    meaning = InteractionSettings(value_field="stars", negative_types=["return"], min_positive_value=2.0)
    items = pa.array(["a", "b", "c", "d"])
    reader = HistoryReader(preprocessor, meaning, {each: n for n, each in enumerate(items.to_pylist(), 1)}, False)
    labelling = Labelling.of(meaning, "time", _Times())
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(200):
        n = int(rng.integers(1, 12))
        history = pa.table(
            {
                "item_id": rng.choice(["a", "b", "c", "d", "zz"], size=n).tolist(),
                "event_timestamp": [TINY_START + timedelta(seconds=float(s)) for s in rng.integers(4, size=n) / 2],
                "event_type": rng.choice(np.array(["view", "buy", "return", "odd", None], object), size=n).tolist(),
                "event_value": pa.array(
                    rng.choice(np.array([1.0, 2.0, 3.0, None], object), size=n).tolist(), pa.float32()
                ),
            }
        )
        block = history.append_column("user_id", pa.array(["u"] * n))
        block = with_query_rows(as_events(block, 0, TINY_START + timedelta(days=9)), [TINY_START] * 3)
        expected = encode_timelines(label_events(block, items, labelling), preprocessor)
        found = reader.read(history, None)[0]
        renamed = history.rename_columns(["item_id", "event_timestamp", "interaction_type", "stars"])
        assert np.array_equal(reader.read(renamed, None)[0].event_type, found.event_type)
        for name in ("item_index", "event_type", "event_seconds"):
            assert getattr(found, name).tolist() == expected[name][0].as_py(), (name, history.to_pylist())
        compared += len(found.item_index)
    assert compared > 500
    with pytest.raises(SchemaError, match="'stars' holds string; expected numbers"):
        reader.read({"item_id": ["a"], "stars": ["much"]}, None)


class _Times:
    validation_start = test_start = as_of = TINY_START + timedelta(days=9)


def test_items_outside_the_catalogue_are_skipped(opened):
    plain = opened.embed_user(["i1", "i5", "i9"])
    assert np.array_equal(opened.embed_user(["i1", "unheard of", "i5", "i9", "more"]), plain)
    assert not np.allclose(opened.embed_user(["i1", "i5"]), plain)
    nothing_known = opened.recommend(history=["unheard of"])
    assert nothing_known.method == "popularity" and len(nothing_known) == 10
    assert nothing_known == opened.recommend(history=[]) == opened.recommend()


def test_vectors_and_lists_agree(opened):
    user, items = opened.embed_user(["i3", "i7"]), opened.item_vectors
    assert user.shape == (16,) and user.dtype == np.float32
    scores = items.matrix[1:] @ user
    best = [items.item_ids[int(n)].as_py() for n in np.argsort(-scores)]
    found = opened.recommend(history=["i3", "i7"], k=60)
    assert found.item_ids == [item for item in best if item not in ("i3", "i7")] and len(found) == 58
    similar = opened.similar("i3", 5)
    assert len(similar) == 5 and "i3" not in similar.item_ids
    own = items.matrix[items.rows["i3"]]
    assert np.isclose(similar.scores[0], np.delete(items.matrix[1:] @ own, items.rows["i3"] - 1).max())


def test_items_of_the_batch_have_their_stored_vectors(fitted, opened):
    table = fitted.tables["items"]
    vectors = opened.embed_items(table)
    stored = np.stack(
        [opened.item_vectors.matrix[opened.item_vectors.rows[each]] for each in table["item_id"].to_pylist()]
    )
    assert np.allclose(vectors, stored, atol=1e-6)
    new = {"item_id": ["brand new"], "name": ["product 3 of group 3"], "category": ["group 3"], "price": [9.5]}
    assert opened.embed_items(new).shape == (1, 16)
    with pytest.raises(SchemaError, match="there is no feature 'price'"):
        opened.embed_items({"item_id": ["x"], "name": ["y"]})


def test_excluded_and_filtered_items_are_not_listed(fitted, opened):
    plain = opened.recommend(history=["i3"], k=5)
    without = opened.recommend(history=["i3"], k=5, exclude=[*plain.item_ids[:2], "no item"])
    assert without.item_ids[:3] == plain.item_ids[2:]
    items = fitted.tables["items"].append_column("in_stock", pa.array([n % 2 == 0 for n in range(60)]))
    filtered = Recommender.open(str(fitted.store), items=items)
    only = {"available": "in_stock", "category": "category", "allowed_categories": ["group 0"]}
    found = filtered.recommend(history=["i3"], k=60, filters=only)
    assert sorted(found.item_ids) == sorted(f"i{n}" for n in range(0, 60, 4))
    assert {int(each[1:]) % 4 for each in filtered.similar("i3", 9, filters=only).item_ids} == {0}
    assert filtered.recommend(history=[], k=3, filters=only).method == "popularity"
    with pytest.raises(ConfigError, match=r"candidates.filters.available reads the item fields 'in_stock'; give them"):
        opened.recommend(history=["i3"], filters={"available": "in_stock"})
    with pytest.raises(ConfigError, match="filters: avaliable: Extra inputs"):
        opened.recommend(history=["i3"], filters={"avaliable": "in_stock"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": "3"}, "k must be at least 1, got '3'"),
        ({"k": 2.5}, "k must be at least 1, got 2.5"),
        ({"exclude": "i1"}, "exclude is the text 'i1'; give a list of ids"),
        ({"user_id": "u1", "history": ["i1"]}, "user_id takes the stored list"),
        ({"user_id": "u1", "k": 21}, "k is 21, but the stored lists have 20 items"),
        ({"features": {"heihgt": 3}}, "no user feature 'heihgt'; it has 'taste', 'age'"),
        ({"filters": "all"}, "filters is 'all'"),
        ({"filters": {"seen_days": 3}, "history": ["i1"]}, "reads the times of events"),
    ],
)
def test_wrong_arguments_are_one_line(opened, arguments, said):
    with pytest.raises(ConfigError) as raised:
        opened.recommend(**arguments)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ({"item": ["i1"]}, "the history has no column 'item_id'; it has 'item'"),
        ({"item_id": ["i1", None]}, "1 of 2 ids in 'item_id' are null"),
        ({"item_id": [1.5]}, "the ids in 'item_id' are double"),
        ({"item_id": ["i1"], "event_timestamp": [datetime(2024, 1, 1)]}, "have no time zone"),
        ({"item_id": ["i1"], "event_timestamp": [1]}, "'event_timestamp' holds int64; expected timestamps"),
        ({"item_id": ["i1", "i2"], "user_id": ["u1", "u2"]}, "the history has events of 2 users in 'user_id'"),
        ("i1", "the history is a str; expected"),
        (["i1", None], "the history has None; expected ids as strings or whole numbers"),
        ([1.5], "the history has 1.5; expected ids"),
        ({"i1"}, "the history is a set; expected"),
    ],
)
def test_a_history_that_cannot_be_read_is_one_line(opened, history, said):
    with pytest.raises(DataError) as raised:
        opened.recommend(history=history)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_histories_of_every_kind_are_equal(opened):
    ids = ["i3", "i7", "i11"]
    expected = opened.embed_user(ids)
    frames = [tuple(ids), np.array(ids), pd.Series(ids), {"item_id": ids}, [{"item_id": each} for each in ids]]
    frames += [pd.DataFrame({"item_id": pd.Categorical(ids)}), pa.table({"item_id": ids})]
    frames += [
        pd.DataFrame(
            {"item_id": pd.array(ids, "string"), "event_timestamp": pd.date_range("2024", periods=3, tz="Asia/Tokyo")}
        )
    ]
    for frame in frames:
        assert np.array_equal(opened.embed_user(frame), expected), type(frame)
    naive = {
        "item_id": ids[::-1],
        "event_timestamp": [TINY_START.replace(tzinfo=None) - timedelta(days=n) for n in range(3)],
    }
    assert np.array_equal(opened.embed_user(naive, timezone="UTC"), expected)


def test_missing_values_of_every_kind_are_unknown(opened):
    expected = opened.embed_user(["i3"], {"taste": "group 1"})
    for value in (None, pd.NA, float("nan"), pd.NaT, np.float64("nan")):
        assert np.array_equal(opened.embed_user(["i3"], {"taste": "group 1", "age": value}), expected)
    assert not np.array_equal(opened.embed_user(["i3"], {"taste": "group 1", "age": Decimal("30")}), expected)
    with pytest.raises(SchemaError, match="'age' is declared as numeric, but its values are string"):
        opened.embed_user(["i3"], {"age": "old"})


def test_threads_get_the_answers_of_one(opened):
    histories = [[f"i{n}", f"i{(7 * n) % 60}"] for n in range(60)]
    expected = [opened.recommend(history=each) for each in histories]
    wrong = []

    def ask(offset):
        for n in range(120):
            place = (n * 13 + offset) % 60
            filters = "as_trained" if n % 2 else {"always_include": [f"i{place}"]}
            found = opened.recommend(history=histories[place], filters=filters)
            if n % 2 and found != expected[place]:
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(offset,)) for offset in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_vectors_of_another_version_are_refused(fitted, tmp_path):
    items = pq.read_table(next((fitted.store / "two-tower/1/candidates/item_embeddings").rglob("*.parquet")))
    stamped = items.append_column("model_version", pa.array(["1"] * 60))
    given = Recommender.open(str(fitted.store), item_vectors=stamped)
    assert given.recommend(history=["i3"]) == Recommender.open(str(fitted.store)).recommend(history=["i3"])
    mixed = items.append_column("model_version", pa.array(["1"] * 59 + ["2"]))
    for vectors in (mixed, items.append_column("model_version", pa.nulls(60, pa.string()))):
        with pytest.raises(DataError, match="vectors of two versions cannot be compared"):
            Recommender.open(str(fitted.store), item_vectors=vectors)
    with pytest.raises(SchemaError, match="no column 'model_version'"):
        Recommender.open(str(fitted.store), item_vectors=items)
    store = tmp_path / "store"
    shutil.copytree(fitted.store, store)
    manifest = store / "two-tower/1/candidates/manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "version": "2"}))
    with pytest.raises(DataError, match="have version 2, the model has 1"):
        Recommender.open(str(store))
    manifest.write_text(json.dumps(values))
    part = next((store / "two-tower/1/candidates/item_embeddings").rglob("*.parquet"))
    pq.write_table(items.slice(1), part)
    with pytest.raises(DataError, match="does not have the SHA-256 sum"):
        Recommender.open(str(store))


def test_live_is_the_version_that_was_saved_last(fitted, tmp_path):
    store = tmp_path / "store"
    with pytest.raises(DataError, match=r"live.json does not exist, so no version is known as live"):
        Recommender.open(str(store))
    (tmp_path / "rec_ray.yaml").touch()
    with pytest.raises(ConfigError, match="is the folder of a project; open its object store"):
        Recommender.open(str(tmp_path))
    shutil.copytree(fitted.store, store)
    first = Recommender.open(str(store))
    assert (first.version, first.is_live()) == ("1", True)
    assert fitted.model.save(str(store)) == "2"
    assert not first.is_live() and Recommender.open(str(store)).version == "2"
    assert Recommender.open(str(store), 1).version == "1"
    with pytest.raises(BundleError, match="there is no version '9'"):
        Recommender.open(str(store), 9)
    (store / "runs").mkdir()
    with pytest.raises(ConfigError, match="is the store of a project"):
        fitted.model.save(str(store))


def test_withdrawn_items_are_in_no_list(fitted, tmp_path):
    from rec_ray.storage.live_pointer import write_withdrawn
    from rec_ray.storage.object_store import open_storage

    store = tmp_path / "store"
    shutil.copytree(fitted.store, store)
    best = Recommender.open(str(store)).recommend(history=["i3"], k=2).item_ids
    write_withdrawn(open_storage(str(store)), "1", best)
    changed = Recommender.open(str(store))
    assert not set(best) & {*changed.recommend(history=["i3"], k=58).item_ids, *changed.similar("i3", 58).item_ids}
    for user in ("u3", "nobody"):
        assert not set(best) & set(changed.recommend(user_id=user, k=20).item_ids)


def test_newer_lists_of_an_increment_come_first(fitted, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(fitted.store, store)
    folder, increment = store / "two-tower/1/candidates", store / "two-tower/1/increments/20240501T000000.000000Z"
    shutil.copytree(folder, increment)
    lists = next((increment / "recommendations").rglob("*.parquet"))
    table = pq.read_table(lists)
    reversed_lists = [each[::-1] for each in table["item_ids"].to_pylist()]
    pq.write_table(table.set_column(1, "item_ids", pa.array(reversed_lists)), lists)
    opened = Recommender.open(str(store))
    before = opened.recommend(user_id="u3", k=20).item_ids
    (increment / "published.json").write_text("{}")
    assert opened.recommend(user_id="u3", k=20).item_ids == before[::-1]
    with pytest.raises(DataError, match="no list for user 'stranger'"):
        opened.recommend(user_id="stranger")


def test_nothing_heavy_is_imported(fitted):
    """`import rec_ray` loads no torch; a recommender loads neither Ray, Feast nor a driver of SQL."""
    code = f"""
import sys
import rec_ray
assert not {{"torch", "pyarrow", "numpy", "pydantic"}} & set(sys.modules), "import rec_ray is heavy"
found = rec_ray.Recommender.open({str(fitted.store)!r}).recommend(history=["i3"], k=3)
rec_ray.fit
print(len(found), sorted({{"ray", "feast", "sqlalchemy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "3 []"
    assert "fit" in __import__("rec_ray").__all__
    with pytest.raises(AttributeError, match="no attribute 'unheard'"):
        __import__("rec_ray").unheard  # noqa: B018


@pytest.mark.parametrize("history", ["mean", "transformer", "none"])
def test_many_users_get_the_lists_of_the_batch(processes, history):
    """Single requests and a block: equal lists, scores to within rounding. `bench_api` compares 10,000 users."""
    from served_store import random_model, random_timelines

    served = random_model(items=2000, history=history)
    timelines = random_timelines(served, users=300, seed=1)
    batch = served.recommend_timelines(timelines, k=10, now=datetime(2024, 6, 1, tzinfo=UTC))
    different = 0
    for place in range(timelines.num_rows):
        indices, seconds = timelines["item_index"][place].as_py(), timelines["event_seconds"][place].as_py()
        ids = [served.item_ids[index - 1].as_py() for index in indices]
        times = pa.array(seconds, pa.timestamp("s", "UTC"))
        single = served.recommend(history=pa.table({"item_id": ids, "event_timestamp": times}), k=10)
        assert np.allclose(single.scores, batch[place].scores, atol=1e-6)
        if single.item_ids != batch[place].item_ids:
            # Neighbours in the list, or the last item and the one after it.
            different += 1
            assert np.abs(np.diff(served.recommend_timelines(timelines.slice(place, 1), k=11)[0].scores)).min() < 1e-6
    assert different < 3
