"""Publishing, rolling back and pruning on real online stores: every row counted, nobody served what is no more."""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_versions import search_view, write_feast_repo, write_search, write_version

from rec_ray.cli.maintenance import run_indexing, run_pruning
from rec_ray.config import Settings
from rec_ray.contracts import UpdateReport
from rec_ray.errors import ConfigError, DataError, GateError, LockedError, PartlyPublishedError, SchemaError
from rec_ray.pipeline import run_publishing, run_rollback
from rec_ray.publishing.previous_ids import note_replaced, replaced_folder
from rec_ray.runs.context import open_feature_store
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.step_events import StepEvent, StepFailed, StepFinished, subscribe, unsubscribe

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]


@dataclass(frozen=True)
class Shop:
    """A project with an online store, an object store and a version database; no models, no events."""

    settings: Settings
    store: Any

    @property
    def storage(self) -> Any:
        return open_object_store(self.settings)

    @property
    def database(self) -> Any:
        return open_version_database(self.settings)

    def answers(self, view: str, field: str, key: str, ids: Sequence[str]) -> list[Any]:
        rows = [{key: each} for each in ids]
        return self.store.get_online_features(features=[f"{view}:{field}"], entity_rows=rows).to_dict()[field]

    def lists(self, users: Sequence[str]) -> list[Any]:
        return self.answers("user_items", "top_k_item_ids", "user_id", users)

    def stamps(self, users: Sequence[str]) -> list[Any]:
        return self.answers("user_items", "model_version", "user_id", users)


def open_shop(folder: Path, online_store: dict[str, Any], metric: str = "cosine", **publish: Any) -> Shop:
    write_feast_repo(folder / "repo", online_store, metric=metric)
    settings = Settings.model_validate(
        {
            "feast": {"repo": str(folder / "repo")},
            "storage": {"url": str(folder / "store")},
            "database": {"url": f"sqlite:///{folder}/versions.db"},
            "publish": {"batch_rows": 7, **publish},
        }
    )
    return Shop(settings, open_feature_store(settings))


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    if request.param == "sqlite":
        yield open_shop(tmp_path, {"type": "sqlite", "path": "online_store.db"})
    elif request.param == "postgresql":
        yield postgres_shop(request.getfixturevalue("postgresql"), tmp_path)
    else:
        server = request.getfixturevalue("redis_server")
        server.client().flushall()
        yield open_shop(tmp_path, server.online_store())


def postgres_shop(server: Any, folder: Path, **given: Any) -> Shop:
    name = f"online_{uuid.uuid4().hex}"
    server.make_database(name)
    return open_shop(folder, server.online_store(name), **given)


@pytest.fixture
def publications() -> Iterator[list[StepEvent]]:
    """Events at the end of the steps that publish, as the metrics and the command line receive them."""
    ends: list[StepEvent] = []

    def keep(event: StepEvent) -> None:
        if isinstance(event, StepFinished | StepFailed) and event.publishes:
            ends.append(event)

    subscribe(keep)
    yield ends
    unsubscribe(keep)


def names(letter: str, numbers: range) -> list[str]:
    return [f"{letter}{number}" for number in numbers]


def test_who_left_is_not_served_and_a_rollback_brings_all_back(shop: Shop) -> None:
    first = write_version(shop.storage, "1", names("u", range(50)), names("i", range(10)), part_rows=20)
    write_version(shop.storage, "2", names("u", range(10, 60)), names("i", range(5, 15)), part_rows=20)
    report = run_publishing(shop.settings, "1")
    assert report.counts == {
        "rows pushed to item_embed_push_source": 10,
        "rows pushed to user_embed_push_source": 50,
        "rows pushed to user_items_push_source": 50,
    }
    users = names("u", range(60))
    before = shop.lists(users)
    assert all(len(found) == 5 for found in before[:50]) and before[50:] == [None] * 10
    assert len(first.parts("recommendations")) == 3

    report = run_publishing(shop.settings, "2")
    assert report.counts["departed, emptied in item_embed_push_source"] == 5
    assert report.counts["departed, emptied in user_items_push_source"] == 10
    assert report.counts["departed, emptied in user_embed_push_source"] == 10
    now = shop.lists(users)
    assert now[:10] == [[]] * 10, "they left"
    assert all(len(found) == 5 for found in now[10:]) and now[10:50] != before[10:50]
    assert shop.stamps(users) == ["2"] * 60
    vectors = shop.answers("item_embedding", "embedding", "item_id", names("i", range(15)))
    assert vectors[:5] == [None] * 5 and all(len(vector) == 8 for vector in vectors[5:])
    assert not set(names("i", range(5))) & {item for found in now for item in found}

    # The weights of these versions are none: whoever loads a model fails.
    report = run_rollback(shop.settings, "1")
    assert report.counts["departed, emptied in user_items_push_source"] == 10
    assert shop.lists(users) == [*before[:50], *[[]] * 10]
    assert shop.stamps(users) == ["1"] * 60
    assert [row.version for row in shop.database.list_versions()] == ["1", "2", "1"]
    live = shop.database.list_versions()[0]
    assert (live.parent, live.run_id, live.metrics) == ("2", "run-1", {"model": {"recall@10": 0.25}})
    with pytest.raises(ConfigError, match=r"version 3 was never live.* '1', '2'.*rec-ray publish 3"):
        run_rollback(shop.settings, "3")


def test_search_vectors_come_and_go_with_their_version(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two vectors an item, of which one may be missing; and a view of nothing but one vector, as older ones are."""
    views = {"texts": ["name_vector", "about_vector"], "images": ["image_vector"]}
    stamped = {"texts": True, "images": False}
    shop.store.apply([search_view(tmp_path, name, views[name], stamped=stamped[name]) for name in views])
    for version in ("1", "2", "3"):
        write_version(shop.storage, version, ["u1"], names("i", range(4)))
    write_search(
        shop.storage,
        "1",
        "texts",
        views["texts"],
        {"i0": [[1, 0, 0], [0, 1]], "i1": [None, [1, 0]], "i2": [[0, 0, 1], None]},
    )
    write_search(shop.storage, "1", "images", views["images"], {"i0": [[0.6, 0.8]], "i1": [[0.8, 0.6]]})
    write_search(shop.storage, "2", "texts", views["texts"], {"i0": [None, [1, 0]], "i3": [[1, 0, 0], [0, 1]]})
    write_search(shop.storage, "2", "images", views["images"], {"i1": [[1, 0]]})

    def found(view: str, name: str) -> list[Any]:
        answers = shop.answers(view, name, "item_id", names("i", range(4)))
        return [None if answer is None else pytest.approx(answer) for answer in answers]

    report = run_publishing(shop.settings, "1")
    assert list(report.counts) == [
        f"rows pushed to {source}"
        for source in ("item_embed_push_source", "texts", "images", "user_embed_push_source", "user_items_push_source")
    ]
    first = {
        ("texts", "name_vector"): [[1, 0, 0], None, [0, 0, 1], None],
        ("texts", "about_vector"): [[0, 1], [1, 0], None, None],
        ("images", "image_vector"): [[0.6, 0.8], [0.8, 0.6], None, None],
    }
    assert {each: found(*each) for each in first} == first
    report = run_publishing(shop.settings, "2")
    assert report.counts["departed, emptied in texts"] == 2
    assert report.counts["departed, emptied in images"] == 1
    second = {
        ("texts", "name_vector"): [None, None, None, [1, 0, 0]],
        ("texts", "about_vector"): [[1, 0], None, None, [0, 1]],
        ("images", "image_vector"): [[0, 0], [1, 0], None, None],
    }
    assert {each: found(*each) for each in second} == second
    run_rollback(shop.settings, "1")
    first["texts", "about_vector"] = [[0, 1], [1, 0], None, None]
    assert {each: found(*each) for each in first} == first
    wanted = {
        "search": {
            "text_encoder": "transformers:some",
            "text_views": {"texts": {"name_vector": ["name"], "about_vector": ["about"]}},
        }
    }
    run_publishing(Settings.model_validate({**shop.settings.model_dump(), **wanted}), "3")
    assert "version 3 has no vectors to push to texts; run `rec-ray candidates`" in caplog.text
    shop.store.delete_feature_view("images")
    run_rollback(shop.settings, "2")
    assert "the vectors of version 2 are not pushed: push source images feeds no view" in caplog.text


def test_who_left_between_two_computations_of_a_version_is_emptied(
    tmp_path: Path, publications: list[StepEvent]
) -> None:
    """The everyday case without a new training: the lists of the live version are computed anew and pushed again."""
    shop = open_shop(tmp_path, {"type": "sqlite", "path": "online_store.db"})
    users = names("u", range(12))
    write_version(shop.storage, "1", users, names("i", range(6)))
    run_publishing(shop.settings, "1")
    # Computed twice before it is pushed: who was in the first is in the feature store, who was in the second is not.
    for left in (range(3, 12), range(2, 9)):
        note_replaced(shop.storage, "1")
        write_version(shop.storage, "1", names("u", left), names("i", range(1, 6)))

    report = run_publishing(shop.settings, "1")

    assert report.counts["departed, emptied in user_items_push_source"] == 5
    assert report.counts["departed, emptied in item_embed_push_source"] == 1
    lists = shop.lists(users)
    assert [bool(found) for found in lists] == [False] * 2 + [True] * 7 + [False] * 3
    assert not shop.storage.list(replaced_folder("1"))
    finished = publications[-1]
    assert isinstance(finished, StepFinished) and isinstance(finished.result, UpdateReport)
    assert finished.result.departed["user_items_push_source"] == 5
    assert "departed, emptied in user_items_push_source" not in run_publishing(shop.settings, "1").counts


def test_who_left_after_a_push_that_failed_is_emptied_too(redis_server: Any, tmp_path: Path) -> None:
    """Version 2 reaches Feast and is never committed; its users are rows of nobody when version 3 comes."""
    redis_server.client().flushall()
    shop = open_shop(tmp_path, redis_server.online_store())
    for version, users in (("1", range(10)), ("2", range(10, 20)), ("3", range(5, 10))):
        write_version(shop.storage, version, names("u", users), names("i", range(6)))
    run_publishing(shop.settings, "1")
    part = tmp_path / "store/two-tower/2/candidates/recommendations/part-000000-000.parquet"
    # Pushing the lists fails: the last of the three.
    whole = part.read_bytes()
    manifest = tmp_path / "store/two-tower/2/candidates/manifest.json"
    told = manifest.read_text()
    changed = json.loads(told)
    changed["parts"]["recommendations"][0] = {"name": "part-000000-000.parquet", "rows": 10}
    manifest.write_text(json.dumps(changed))
    pq.write_table(pq.read_table(part).drop_columns(["scores"]), part)
    with pytest.raises(PartlyPublishedError, match="0 of 10 rows reached 'user_items_push_source'"):
        run_publishing(shop.settings, "2")
    assert shop.database.live() == "1"
    assert shop.answers("user_embedding", "model_version", "user_id", names("u", range(10, 20))) == ["2"] * 10
    manifest.write_text(told)
    part.write_bytes(whole)
    run_publishing(shop.settings, "3")
    assert shop.lists(names("u", range(20)))[:5] == [[]] * 5
    assert shop.lists(names("u", range(20)))[10:] == [[]] * 10
    assert shop.stamps(names("u", range(20))) == ["3"] * 20


def test_a_stale_row_with_a_later_time_is_noticed(redis_server: Any, tmp_path: Path) -> None:
    """Redis keeps it and says nothing; so does Feast."""
    redis_server.client().flushall()
    shop = open_shop(tmp_path, redis_server.online_store())
    users = names("u", range(100))
    write_version(shop.storage, "1", users, names("i", range(6)), part_rows=50)
    from rec_ray.feature_store.push_targets import find_push_target, push_frame
    from rec_ray.schema import ITEM_IDS, RECOMMENDATIONS, SCORES

    target = find_push_target(shop.store, "user_items_push_source", "user_id", [ITEM_IDS, SCORES])
    import pyarrow as pa

    # Not among those that are read back at the end: the first row of a task's slice of 13 is read back at once.
    ids = names("u", range(32, 40))
    columns = [ids, [["i1"]] * len(ids), [[0.5]] * len(ids), ["model"] * len(ids)]
    stale = pa.table(columns, schema=RECOMMENDATIONS)
    shop.store.push(target.source, push_frame(stale, target, "0", datetime.now(UTC) + timedelta(days=2)))
    with pytest.raises(
        PartlyPublishedError, match=r"'user_items' returns other values .* kept 1 of 1 rows.*clock is ahead"
    ):
        run_publishing(shop.settings, "1")
    assert shop.database.live() is None


def test_pruning_keeps_what_may_be_needed(tmp_path: Path) -> None:
    shop = open_shop(tmp_path, {"type": "sqlite", "path": "online_store.db"})
    for number in range(1, 8):
        assert shop.database.reserve(f"run-{number}") == str(number)
        if number != 6:
            write_version(shop.storage, str(number), ["u1"], ["i1"])
            shop.database.mark(str(number), "stored")
    shop.storage.write_bytes("two-tower/6/weights.safetensors", b"still being written")
    run_publishing(shop.settings, "2")
    run_publishing(shop.settings, "4")
    run_rollback(shop.settings, "2")
    with shop.database.publishing_lock("somebody", 60), pytest.raises(LockedError, match="somebody"):
        run_pruning(shop.settings, 1)
    pruned = run_pruning(shop.settings, 1)
    assert pruned.removed == ["5", "3", "1"]
    assert pruned.kept == {
        "7": "among the newest",
        "6": "its run may continue",
        "4": "parent of the live one",
        "2": "live",
    }
    assert sorted(shop.storage.folders("two-tower")) == ["2", "4", "6", "7"]
    assert {each.version: each.state for each in shop.database.reservations()}["3"] == "pruned"
    assert shop.database.live() == "2"
    with pytest.raises(DataError, match="there is no version '3'"):
        run_publishing(shop.settings, "3")


def test_damaged_candidates_are_refused_before_anything_is_pushed(
    tmp_path: Path, publications: list[StepEvent]
) -> None:
    shop = open_shop(tmp_path, {"type": "sqlite", "path": "online_store.db"})
    candidates = write_version(shop.storage, "1", names("u", range(9)), names("i", range(6)))
    key = f"{candidates.prefix}/recommendations/part-000000-000.parquet"
    data = bytearray(shop.storage.read_bytes(key))
    data[100] ^= 1
    shop.storage.write_bytes(key, bytes(data))
    with pytest.raises(DataError, match=r"recommendations/part-000000-000.parquet does not have the SHA-256 sum"):
        run_publishing(shop.settings, "1")
    shop.storage.delete_prefix(key)
    with pytest.raises(DataError, match=r"part-000000-000.parquet is missing"):
        run_publishing(shop.settings, "1")
    assert [type(event) for event in publications] == [StepFailed, StepFailed]
    assert shop.answers("item_embedding", "model_version", "item_id", ["i1"]) == [None]
    assert shop.database.live() is None


def test_a_similarity_other_than_the_metric_of_the_view_is_refused(tmp_path: Path) -> None:
    shop = open_shop(tmp_path, {"type": "sqlite", "path": "online_store.db"}, metric="cosine")
    write_version(shop.storage, "1", ["u1"], ["i1"], similarity="dot")
    with pytest.raises(SchemaError, match=r"'item_embedding' has the vector metric 'cosine'.*compares by 'dot'"):
        run_publishing(shop.settings, "1")
    assert shop.database.live() is None
    other = open_shop(tmp_path / "other", {"type": "sqlite", "path": "online_store.db"}, metric="inner_product")
    write_version(other.storage, "1", ["u1"], ["i1"], similarity="dot")
    run_publishing(other.settings, "1")
    assert other.database.live() == "1"


def test_lists_of_texts_go_to_no_file(tmp_path: Path) -> None:
    shop = open_shop(tmp_path, {"type": "sqlite", "path": "online_store.db"}, push_mode="online_and_offline")
    write_version(shop.storage, "1", ["u1"], ["i1"])
    with pytest.raises(SchemaError, match=r"'user_items' has lists of texts in 'top_k_item_ids'.*push_mode: online"):
        run_publishing(shop.settings, "1")
    assert shop.answers("item_embedding", "model_version", "item_id", ["i1"]) == [None]


def test_an_index_over_vectors_in_postgresql(postgresql: Any, tmp_path: Path) -> None:
    import sqlalchemy as sa

    from rec_ray.feature_store.pgvector import missing_vector_indexes
    from rec_ray.publishing.push import find_push_targets

    shop = postgres_shop(postgresql, tmp_path, list_floor=0)
    targets = find_push_targets(shop.store, shop.settings.publish).values()
    assert missing_vector_indexes(shop.store, targets) == ["item_embedding", "user_embedding"]
    with pytest.raises(DataError, match="'item_embedding' holds no vector yet; publish first"):
        run_indexing(shop.settings, "hnsw")
    for version in ("1", "2"):
        write_version(shop.storage, version, names("u", range(40)), names("i", range(int(version), 300)))
    run_publishing(shop.settings, "1")
    assert run_indexing(shop.settings, "hnsw") == {"item_embedding": "hnsw made", "user_embedding": "hnsw made"}
    assert run_indexing(shop.settings, "ivfflat") == dict.fromkeys(
        ["item_embedding", "user_embedding"], "there already"
    )
    assert missing_vector_indexes(shop.store, targets) == []
    database = shop.store.config.online_store.database
    with postgresql.engine(database).connect() as connection:
        connection.execute(sa.text("SET enable_seqscan = off"))
        # As Feast's own search asks (retrieve_online_documents).
        plan = connection.scalars(
            sa.text(
                "EXPLAIN SELECT entity_key, vector_value <=> '[1,0,0,0,0,0,0,0]'::vector AS distance "
                "FROM shop_item_embedding ORDER BY distance LIMIT 5"
            )
        ).all()
    assert any("shop_item_embedding_vector" in line for line in plan), plan
    run_publishing(shop.settings, "2")
    assert run_indexing(shop.settings, "hnsw", drop=True) == dict.fromkeys(
        ["item_embedding", "user_embedding"], "dropped"
    )
    write_version(shop.storage, "3", ["u1"], ["i1"], size=16)
    run_publishing(shop.settings, "3")
    assert shop.database.live() == "3"


def sqlite_shop(folder: Path, **publish: Any) -> Shop:
    return open_shop(folder, {"type": "sqlite", "path": "online_store.db"}, **publish)


def pushes(shop: Shop) -> int:
    import sqlalchemy as sa

    with sa.create_engine(shop.settings.database.url).connect() as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM model_version_push")).scalar_one())


@pytest.mark.parametrize(
    "damage", ["part gone", "part without footer", "pages overwritten", "manifest cut", "no files"]
)
def test_a_damaged_live_version_can_be_left(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    """Ids that departed are emptied as far as they can be read; the others are counted in a warning."""
    shop = sqlite_shop(tmp_path)
    write_version(shop.storage, "1", names("u", range(30)), names("i", range(6)), part_rows=10)
    write_version(shop.storage, "2", names("u", range(10, 40)), names("i", range(6)), part_rows=10)
    run_publishing(shop.settings, "1")
    run_publishing(shop.settings, "2")
    key = "two-tower/2/candidates/recommendations/part-000002-000.parquet"
    whole = shop.storage.read_bytes(key)
    manifest = "two-tower/2/candidates/manifest.json"
    if damage == "part gone":
        shop.storage.delete_prefix(key)
    elif damage == "part without footer":
        shop.storage.write_bytes(key, whole[: len(whole) // 2])
    elif damage == "pages overwritten":
        shop.storage.write_bytes(key, whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    elif damage == "manifest cut":
        shop.storage.write_bytes(manifest, shop.storage.read_bytes(manifest)[:100])
    else:
        shop.storage.delete_prefix("two-tower/2")

    report = run_rollback(shop.settings, "1")

    assert shop.database.live() == "1"
    assert shop.stamps(names("u", range(30))) == ["1"] * 30
    assert all(len(found) == 5 for found in shop.lists(names("u", range(30))))
    if damage in ("manifest cut", "no files"):
        assert "stay in the feature store" in caplog.text
    else:
        assert report.counts["departed, emptied in user_embed_push_source"] == 10, "from whole parts"
        assert "part-000002-000.parquet" in caplog.text and "unknown" in caplog.text
    write_version(shop.storage, "3", names("u", range(30)), names("i", range(6)))
    run_publishing(shop.settings, "3")
    assert shop.database.live() == "3", "the way on is open too"


@pytest.mark.parametrize("name", ["weights.safetensors", "metadata.json", "manifest.json"])
def test_a_model_with_one_byte_flipped_is_not_made_live_again(tmp_path: Path, name: str) -> None:
    """Every file is compared with its sum, and the manifest with the version row, before a push begins."""
    shop = sqlite_shop(tmp_path)
    for version in ("1", "2"):
        write_version(shop.storage, version, names("u", range(3)), names("i", range(6)))
        run_publishing(shop.settings, version)
    key = f"two-tower/1/{name}"
    data = shop.storage.read_bytes(key)
    # In the manifest: a space more is the same JSON with another sum.
    shop.storage.write_bytes(
        key, data + b" " if name == "manifest.json" else data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    )
    before = pushes(shop)
    said = "was published with the checksum" if name == "manifest.json" else f"damaged: {name} .* SHA-256"
    with pytest.raises(DataError, match=said):
        run_rollback(shop.settings, "1")
    assert pushes(shop) == before and shop.database.live() == "2"
    assert shop.stamps(names("u", range(3))) == ["2"] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"is_increment": True}, "is of an increment, expected all candidates of a version"),
        ({"embedding_size": 7}, "have 8 numbers, the manifest has embedding_size 7"),
        ({"version": "2"}, "are those of version 2, not of 1"),
        ({"parts": {"item_embeddings": [], "user_embeddings": [], "recommendations": []}}, "0 users with a list"),
    ],
)
def test_a_manifest_that_was_edited_is_not_made_live(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """In candidates of an earlier program, whose manifest no database knows; others are refused by their sum."""
    shop = sqlite_shop(tmp_path)
    for version in ("1", "2"):
        write_version(shop.storage, version, names("u", range(9)), names("i", range(6)))
        run_publishing(shop.settings, version)
    key = "two-tower/1/candidates/manifest.json"
    shop.storage.write_bytes(key, json.dumps({**json.loads(shop.storage.read_bytes(key)), **change}).encode())
    before = pushes(shop)
    with pytest.raises((DataError, GateError), match=said):
        run_rollback(shop.settings, "1")
    assert pushes(shop) == before and shop.database.live() == "2"
    shop.database.record_candidates("1", "candidates", "ab" * 32)
    with pytest.raises(DataError, match=r"never recorded|are those of version 2|expected all candidates"):
        run_rollback(shop.settings, "1")


def test_lists_that_vanish_are_refused_unless_that_is_meant(tmp_path: Path) -> None:
    shop = sqlite_shop(tmp_path)
    write_version(shop.storage, "1", names("u", range(20)), names("i", range(6)))
    write_version(shop.storage, "2", names("u", range(9)), names("i", range(6)))
    run_publishing(shop.settings, "1")
    said = r"9 users with a list, the live version 1 has 20: below publish.list_floor 0.5.*--set publish.list_floor=0"
    with pytest.raises(GateError, match=said) as caught:
        run_publishing(shop.settings, "2")
    assert caught.value.exit_code == 5 and shop.database.live() == "1"
    assert shop.stamps(names("u", range(20))) == ["1"] * 20
    forced = shop.settings.model_copy(update={"publish": shop.settings.publish.model_copy(update={"list_floor": 0.0})})
    run_publishing(forced, "2")
    assert shop.database.live() == "2"
    run_rollback(shop.settings, "1")
    assert shop.database.live() == "1", "more lists are no reason to refuse"


def test_old_versions_are_removed_after_a_publication(tmp_path: Path) -> None:
    """Never the parent of the live one, to which a rollback goes."""
    shop = sqlite_shop(tmp_path, keep_versions=2)
    for version in ("1", "2", "3", "4"):
        write_version(shop.storage, version, ["u1"], ["i1"])
    for version, left in (("1", {"1", "3", "4"}), ("3", {"1", "3", "4"}), ("4", {"3", "4"})):
        report = run_publishing(shop.settings, version)
        assert set(shop.storage.folders("two-tower")) == left
    assert report.counts["old versions removed"] == 1
    run_rollback(shop.settings, "3")
    assert shop.database.live() == "3"
    everything = sqlite_shop(tmp_path / "all", keep_versions=0)
    for version in names("1", range(12)):
        write_version(everything.storage, version, ["u1"], ["i1"])
    run_publishing(everything.settings, "10")
    assert len(everything.storage.folders("two-tower")) == 12


def test_a_rollback_leaves_out_items_that_feast_no_longer_has(tmp_path: Path) -> None:
    """An item that only the live version lost, and Feast has, comes back; one that Feast lost too does not."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32, String

    shop = sqlite_shop(tmp_path)
    items = names("i", range(6))
    known = [item for item in items if item != "i3"]
    rows = {"item_id": known, "price": [1.0] * 5, "event_timestamp": [datetime(2024, 1, 1, tzinfo=UTC)] * 5}
    pq.write_table(pa.table(rows), tmp_path / "items.parquet")
    view = FeatureView(
        name="item_features",
        entities=[Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)],
        ttl=timedelta(0),
        schema=[Field(name="item_id", dtype=String), Field(name="price", dtype=Float32)],
        source=FileSource(path=str(tmp_path / "items.parquet"), timestamp_field="event_timestamp"),
    )
    shop.store.apply([view, FeatureService(name="item_service", features=[view])])
    users = names("u", range(12))
    write_version(shop.storage, "1", users, items)
    write_version(shop.storage, "2", users, [item for item in items if item not in ("i3", "i5")], k=4)
    run_publishing(shop.settings, "1")
    first = shop.lists(users)
    run_publishing(shop.settings, "2")

    report = run_rollback(shop.settings, "1")

    assert report.counts["withdrawn items, left out"] == 1
    assert shop.lists(users) == [[item for item in found if item != "i3"] for found in first]
    assert any("i5" in found for found in shop.lists(users))
    stamps = shop.answers("item_embedding", "model_version", "item_id", items)
    assert stamps == ["1", "1", "1", "2", "1", "1"]
    assert shop.answers("item_embedding", "embedding", "item_id", ["i3"]) == [None]
