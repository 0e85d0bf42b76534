"""The candidates step with filters, segments, similar items and an increment, against a loop over users and items."""

import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rec_ray.config import CandidateSettings, FilterSettings
from rec_ray.errors import SchemaError
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.storage.object_store import open_storage

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

PREFIX = "two-tower/7/candidates"


def generate(tiny, folder, data, prefix=PREFIX, items_of=None, **settings):
    from rec_ray.candidates.generate import generate_candidates

    storage = open_storage(str(folder))
    wanted = CandidateSettings(**{"k": 20, "batch_size": 64, **settings})
    made = generate_candidates(data, tiny.bundle, wanted, storage, version="7", prefix=prefix, items_of=items_of)
    return made, storage


def rows_of(storage, folder, prefix=PREFIX):
    from rec_ray.candidate_store.manifest import read_manifest, read_parts

    return read_parts(storage, prefix, read_manifest(storage, prefix), folder).to_pylist()


@pytest.fixture(scope="module")
def carrying(tiny_data, tmp_path_factory):
    """The tiny data with raw fields, as a run with filters on them writes it, and `blank`, of whom nothing is known.

    Items of even place are in stock; `late` and `new` are new; each item has the limit 0, 12, 16 or 18 by its place.
    Users of even place are 15, the others 40, `quiet` has no age; everybody is of segment A, B or C by place modulo 3.
    """
    folder = tmp_path_factory.mktemp("carrying")
    filesystem = tiny_data.storage.filesystem
    catalogue = pq.read_table(tiny_data.data.catalogue_now, filesystem=filesystem).sort_by("item_index")
    place = np.arange(catalogue.num_rows)
    names = catalogue["item_id"].to_pylist()
    now = tiny_data.data.split_times.as_of
    raw_items = {
        "raw_in_stock": pa.array(place % 2 == 0),
        "raw_limit": pa.array(np.array([0, 12, 16, 18])[place % 4]),
        "raw_first_seen": pa.array(
            [now if name in ("late", "new") else now - timedelta(days=99) for name in names], pa.timestamp("us", "UTC")
        ),
    }
    for name, column in raw_items.items():
        catalogue = catalogue.append_column(name, column)
    pq.write_table(catalogue, folder / "catalogue.parquet")
    timelines = pq.read_table(tiny_data.data.timelines, filesystem=filesystem)
    users = timelines["user_id"].to_pylist()
    ages = [None if user == "quiet" else 15 if place % 2 == 0 else 40 for place, user in enumerate(users)]
    segments = ["ABC"[place % 3] for place in range(len(users))]
    timelines = timelines.append_column("raw_now_age", pa.array(ages, pa.int64()))
    timelines = timelines.append_column("raw_now_segment", pa.array(segments))
    quiet = timelines.filter(pc.equal(timelines["user_id"], "quiet"))
    (blank,) = quiet.to_pylist()
    shape = tiny_data.bundle.preprocessor.users.shape
    assert (shape.numeric, shape.fields) == (2, 1), "age, and taste"
    blank |= {"user_id": "blank", "user_numeric": [0.0, 1.0], "feature_row": [0, 0, 0], "raw_now_segment": "B"}
    blank |= {"user_tokens": [], "user_token_counts": [0], "raw_now_age": 15}
    timelines = pa.concat_tables([timelines, pa.Table.from_pylist([blank], schema=timelines.schema)])
    pq.write_table(timelines, folder / "timelines.parquet")
    paths = {"timelines": str(folder / "timelines.parquet"), "catalogue_now": str(folder / "catalogue.parquet")}
    fields = {"names": names, "place": dict(zip(names, place.tolist(), strict=True))}
    data = dataclasses.replace(tiny_data.data, **paths)
    return data, fields | {"ages": dict(zip([*users, "blank"], [*ages, 15], strict=True)), "segments": segments}


@pytest.fixture(scope="module")
def positives(carrying, tiny_data):
    """Positives of each item in segment B, by name."""
    data, fields = carrying
    timelines = Timelines.from_table(pq.read_table(data.timelines), tiny_data.bundle.preprocessor.users.shape)
    counts = dict.fromkeys(fields["names"], 0)
    for user, (start, end) in enumerate(zip(timelines.first[:-1], timelines.first[1:], strict=True)):
        if (fields["segments"] + ["B"])[user] == "B":
            for item, weight in zip(timelines.item_index[start:end], timelines.weight[start:end], strict=True):
                counts[fields["names"][item - 1]] += weight > 0
    return counts


RULE = {"item": "limit", "must_be": "at_most", "user": "age"}


def fits(fields, user, item):
    place, age = fields["place"][item], fields["ages"][user]
    limit = [0, 12, 16, 18][place % 4]
    return place % 2 == 0 and age is not None and limit <= age


def test_filters_segments_and_similar_items_at_once(carrying, tiny_data, positives, tmp_path):
    data, fields = carrying
    plain = {"k": 62, "exclude_seen": True}
    _, storage = generate(tiny_data, tmp_path / "plain", data, **plain)
    everything = {row["user_id"]: row["item_ids"] for row in rows_of(storage, "recommendations")}
    made, storage = generate(
        tiny_data,
        tmp_path / "filtered",
        data,
        k=5,
        segment="segment",
        similar_items=4,
        filters=FilterSettings(available="in_stock", rules=[RULE]),
    )
    rows = {row["user_id"]: row for row in rows_of(storage, "recommendations")}
    assert len(rows) == 203 == made.users
    for user, row in rows.items():
        if user == "blank":
            continue
        expected = [item for item in everything[user] if fits(fields, user, item)]
        assert row["item_ids"] == expected[:5], user
        assert row["method"] == "model"
    assert rows["blank"]["method"] == "popularity"
    may = [item for item in fields["names"] if fits(fields, "blank", item)]
    popular = sorted(may, key=lambda item: (-positives[item], fields["place"][item]))
    assert rows["blank"]["item_ids"] == popular[:5]
    total = sum(positives.values())
    assert rows["blank"]["scores"] == pytest.approx([positives[item] / total for item in popular[:5]])
    assert made.facts["popularity_lists"] == 1
    assert made.facts["users_without_items"] == 1, "`quiet` has no age, and no item in stock is without a limit"
    assert rows["quiet"]["item_ids"] == []

    vectors = {row["item_id"]: np.array(row["embedding"]) for row in rows_of(storage, "item_embeddings")}
    in_stock = [item for item in fields["names"] if fields["place"][item] % 2 == 0]
    similar = {row["item_id"]: row["similar_item_ids"] for row in rows_of(storage, "similar_items")}
    assert set(similar) == set(vectors)
    for item, found in similar.items():
        nearest = sorted(in_stock, key=lambda other: -vectors[item] @ vectors[other])
        assert found == [other for other in nearest if other != item][:4], item


def test_without_a_segment_popularity_is_that_of_all_and_new_items_have_their_share(carrying, tiny_data, tmp_path):
    data, fields = carrying
    _, storage = generate(tiny_data, tmp_path, data, k=10, fresh_share=0.1)
    catalogue = pq.read_table(data.catalogue_now).to_pylist()
    counts = {row["item_id"]: row["count"] for row in catalogue}
    for row in rows_of(storage, "recommendations"):
        if row["user_id"] == "blank":
            popular = sorted(fields["names"], key=lambda item: (-counts[item], fields["place"][item]))
            assert row["item_ids"][:9] == popular[:9]
        assert {"late", "new"} & set(row["item_ids"]), row["user_id"]


def test_what_was_seen_may_be_told_by_type_and_by_age(carrying, tiny_data, tmp_path):
    data, fields = carrying
    timelines = pq.read_table(data.timelines).to_pylist()
    purchase = tiny_data.bundle.preprocessor.event_types.index("purchase") + 1
    since = data.split_times.as_of.timestamp() - 30 * 86_400
    filters = FilterSettings(seen_types=["purchase"], seen_days=30)
    _, storage = generate(tiny_data, tmp_path, data, k=62, filters=filters)
    found = {row["user_id"]: set(row["item_ids"]) for row in rows_of(storage, "recommendations")}
    left_out = 0
    for row in timelines:
        events = zip(row["item_index"], row["event_type"], row["event_seconds"], strict=True)
        seen = {fields["names"][i - 1] for i, kind, when in events if kind == purchase and when >= since}
        assert found[row["user_id"]] == set(fields["names"]) - seen
        left_out += len(seen)
    assert 0 < left_out < sum(len(row["item_index"]) for row in timelines) / 5


def test_an_increment_has_the_items_of_the_version_and_only_the_given_users(carrying, tiny_data, tmp_path):
    from rec_ray.candidate_store.manifest import read_manifest

    data, _ = carrying
    _, storage = generate(tiny_data, tmp_path, data)
    before = {row["user_id"]: row for row in rows_of(storage, "recommendations")}
    few = pq.read_table(data.timelines)
    few = few.filter(pc.is_in(few["user_id"], pa.array(["u3", "u5", "blank"])))
    pq.write_table(few, tmp_path / "few.parquet")
    # The catalogue has lost the fields of an item meanwhile, and the item stays.
    catalogue = pq.read_table(data.catalogue_now)
    pq.write_table(catalogue.filter(pc.not_equal(catalogue["item_id"], "i0")), tmp_path / "catalogue.parquet")
    newer = dataclasses.replace(
        data, timelines=str(tmp_path / "few.parquet"), catalogue_now=str(tmp_path / "catalogue.parquet"), users=3
    )
    prefix = "two-tower/7/increments/x"
    made, _ = generate(tiny_data, tmp_path, newer, prefix, PREFIX)
    assert (made.users, made.items) == (2, 62), "nothing is known of `blank`"
    found = {row["user_id"]: row for row in rows_of(storage, "recommendations", prefix)}
    assert set(found) == {"u3", "u5"}
    for user, row in found.items():
        assert row["item_ids"] == before[user]["item_ids"]
        assert row["scores"] == pytest.approx(before[user]["scores"], abs=1e-5)
    manifest = read_manifest(storage, prefix)
    assert manifest.is_increment and set(manifest.parts) == {"user_embeddings", "recommendations", "user_timelines"}
    assert rows_of(storage, "recommendations") == list(before.values())


def test_fields_that_were_not_read_are_named(tiny_data, tmp_path):
    with pytest.raises(SchemaError, match="lack 'in_stock', which filters read"):
        generate(tiny_data, tmp_path, tiny_data.data, filters=FilterSettings(available="in_stock"))


def test_the_time_of_an_increment_is_told_in_words_or_is_that_of_the_newest_candidates(tmp_path):
    from rec_ray.candidate_store.increments import find_increment, new_increment, start_of_increment
    from rec_ray.errors import ConfigError, DataError

    now = datetime(2024, 5, 5, 12, tzinfo=UTC)
    storage = open_storage(str(tmp_path))
    storage.write_bytes("c/manifest.json", b'{"version": "1", "parts": {}, "as_of": "2024-05-01T00:00:00+00:00"}')

    def start(text):
        return start_of_increment(text, storage, "c", "i", now)

    assert start("36h") == now - timedelta(hours=36)
    assert start("7d") == now - timedelta(days=7)
    assert start("2024-05-05T14:00+02:00") == now
    assert start("2024-05-05") == now - timedelta(hours=12)
    assert start("last") == datetime(2024, 5, 1, tzinfo=UTC)
    for text in ("soon", "2024-05-06"):
        with pytest.raises(ConfigError, match=f"--since.*{text}"):
            start(text)
    with pytest.raises(DataError, match="no increment 'newest'; it has none"):
        find_increment(storage, "i", "newest")
    names = [new_increment(now - timedelta(days=ago)) for ago in (3, 2, 1)]
    for name in names:
        storage.write_bytes(
            f"i/{name}/manifest.json", b'{"version": "1", "parts": {}, "as_of": "2024-05-03T00:00:00+00:00"}'
        )
    storage.write_bytes("i/99990101T000000/recommendations", b"an interrupted one")
    assert start("last") == datetime(2024, 5, 3, tzinfo=UTC)
    assert find_increment(storage, "i", "newest") == names[2]
    assert find_increment(storage, "i", names[0]) == names[0]
    storage.write_bytes(f"i/{names[1]}/published.json", b"{}")
    with pytest.raises(DataError, match=r"newer than .* and was published"):
        find_increment(storage, "i", names[0])
    assert find_increment(storage, "i", names[1]) == names[1]
