"""Candidates are what a ranking of everything, done one user at a time, gives; and readers see all of a run or none."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from rec_ray.candidate_store.manifest import read_manifest, read_parts
from rec_ray.config import CandidateSettings
from rec_ray.errors import DataError, GateError
from rec_ray.retrieval.features.catalogue import CATALOGUE, Catalogue
from rec_ray.retrieval.features.timelines import TimelineInputs, Timelines
from rec_ray.retrieval.profiles.list_profile import LISTS
from rec_ray.storage.object_store import open_storage

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

PREFIX = "two-tower/7/candidates"


def generate(tiny, folder, data=None, **settings):
    from rec_ray.candidates.generate import generate_candidates

    storage = open_storage(str(folder))
    candidates = generate_candidates(
        data or tiny.data,
        tiny.bundle,
        CandidateSettings(**{"k": 20, **settings}),
        storage,
        version="7",
        prefix=PREFIX,
    )
    return candidates, storage


def rows_of(storage, folder):
    return read_parts(storage, PREFIX, read_manifest(storage, PREFIX), folder)


def lists_of(storage):
    """Return user -> (item ids, scores)."""
    return {row["user_id"]: (row["item_ids"], row["scores"]) for row in rows_of(storage, "recommendations").to_pylist()}


@pytest.fixture(scope="module")
def made(tiny_data, tmp_path_factory):
    """Candidates of all of the tiny data, in small batches: (`Candidates`, storage)."""
    return generate(tiny_data, tmp_path_factory.mktemp("candidates"), batch_size=64)


@pytest.fixture(scope="module")
def by_hand(tiny_data):
    """Each vector computed alone with plain torch: items by id, users by id, and what each user has seen."""
    bundle, storage = tiny_data.bundle, tiny_data.storage
    model, length = bundle.model, bundle.arguments["history_length"]
    catalogue = Catalogue.from_table(
        pq.read_table(tiny_data.data.catalogue_now, filesystem=storage.filesystem), bundle.preprocessor.items.shape
    )
    names = catalogue.item_ids.to_pylist()
    table = pq.read_table(tiny_data.data.timelines, filesystem=storage.filesystem)
    timelines = Timelines.from_table(table, bundle.preprocessor.users.shape)
    with torch.inference_mode():
        every = [
            model.embed_items(catalogue.id_index[[i]], catalogue.features.select(torch.tensor([i])))
            for i in range(1, len(names) + 1)
        ]
        items = torch.cat([torch.zeros(1, every[0].shape[1]), *every])
        second = model.item_tower.history_ids.weight[catalogue.id_index[1:]]
        read = torch.cat([items[:1], items[1:] + second])
        users, seen = {}, {}
        for place, row in enumerate(table.to_pylist()):
            newest = row["item_index"][-length:]
            seconds = row["event_seconds"][-length - 1 :]
            gaps = np.diff([seconds[0], *seconds])[-len(newest) :] if newest else []
            own = timelines.user_features.select(torch.tensor([timelines.query_row(2)[place]]))
            inputs = TimelineInputs(
                torch.tensor(newest, dtype=torch.long)[None],
                torch.tensor(row["event_type"][-length:], dtype=torch.long)[None],
                torch.tensor(np.asarray(gaps), dtype=torch.float32)[None],
                torch.tensor([len(newest)]),
                own,
                torch.zeros(1, len(newest) + 1, dtype=torch.long),
            )
            users[row["user_id"]] = model.embed_users(read, inputs)[0]
            seen[row["user_id"]] = {names[index - 1] for index in row["item_index"]}
    return dict(zip(names, items[1:], strict=True)), users, seen


def ranked(by_hand, user, exclude_seen=True):
    """Return all (score, item) that may be recommended to a user, best first."""
    items, users, seen = by_hand
    left_out = seen[user] if exclude_seen else set()
    return sorted(((-float(users[user] @ vector), name) for name, vector in items.items() if name not in left_out))


def test_lists_are_those_of_a_ranking_of_everything(made, by_hand, tiny_data):
    candidates, storage = made
    assert (candidates.users, candidates.items, candidates.k) == (202, 62, 20)
    found = lists_of(storage)
    assert set(found) == set(by_hand[1]) == {*(f"u{number}" for number in range(200)), "quiet", "glutton"}
    for user, (item_ids, scores) in found.items():
        expected = ranked(by_hand, user)[:20]
        assert item_ids == [name for _, name in expected], user
        assert scores == pytest.approx([-score for score, _ in expected], abs=1e-5)
    assert len({tuple(item_ids) for item_ids, _ in found.values()}) > 150, "lists are personal"


def test_vectors_of_all_items_and_users_are_stored(made, by_hand):
    _, storage = made
    for folder, key, expected in (
        ("item_embeddings", "item_id", by_hand[0]),
        ("user_embeddings", "user_id", by_hand[1]),
    ):
        rows = rows_of(storage, folder).to_pylist()
        assert sorted(row[key] for row in rows) == sorted(expected)
        for row in rows:
            assert row["embedding"] == pytest.approx(expected[row[key]].tolist(), abs=1e-5)
            assert np.linalg.norm(row["embedding"]) == pytest.approx(1.0, abs=1e-5)


def test_items_and_users_without_events_take_part(made):
    _, storage = made
    found = lists_of(storage)
    assert len(found["quiet"][0]) == 20
    assert "new" in rows_of(storage, "item_embeddings")["item_id"].to_pylist()
    assert any("new" in item_ids for item_ids, _ in found.values())
    assert set(found["glutton"][0]) == {"new", "late"}, "all others were seen"


def test_files_have_the_documented_columns(made):
    _, storage = made
    expected = {
        "recommendations": {
            "user_id": pa.string(),
            "item_ids": [pa.string()],
            "scores": [pa.float32()],
            "method": pa.string(),
        },
        "item_embeddings": {"item_id": pa.string(), "embedding": [pa.float32()]},
        "user_embeddings": {"user_id": pa.string(), "embedding": [pa.float32()]},
    }
    for folder, columns in expected.items():
        part = read_manifest(storage, PREFIX).parts[folder][0]
        schema = pq.read_schema(storage.path(PREFIX, folder, part.name))
        kinds = {
            field.name: [field.type.value_type] if pa.types.is_list(field.type) else field.type for field in schema
        }
        assert kinds == columns


def test_the_manifest_lists_exactly_the_parts_and_is_written_last(made):
    _, storage = made
    manifest = read_manifest(storage, PREFIX)
    described = {
        key: getattr(manifest, key) for key in ("version", "k", "items", "users", "similarity", "embedding_size")
    }
    assert described == {
        "version": "7",
        "k": 20,
        "items": 62,
        "users": 202,
        "similarity": "cosine",
        "embedding_size": 16,
    }
    list_names = {f"{PREFIX}/{folder}/{part.name}" for folder, parts in manifest.parts.items() for part in parts}
    assert list_names | {f"{PREFIX}/manifest.json", f"{PREFIX}/{LISTS}"} == set(storage.list(PREFIX))
    files = {key: Path(storage.path(key)) for key in list_names}
    for folder, parts in manifest.parts.items():
        for part in parts:
            path = files[f"{PREFIX}/{folder}/{part.name}"]
            assert pq.read_metadata(path).num_rows == part.rows
    written = Path(storage.path(PREFIX, "manifest.json")).stat().st_mtime_ns
    assert all(path.stat().st_mtime_ns <= written for path in files.values())


def test_k_beyond_what_is_left_gives_all_of_it_and_counts_the_short_lists(tiny_data, by_hand, tmp_path):
    candidates, storage = generate(tiny_data, tmp_path, k=62)
    found = lists_of(storage)
    for user, (item_ids, _) in found.items():
        assert item_ids == [name for _, name in ranked(by_hand, user)]
    assert len(found["quiet"][0]) == 62
    assert candidates.facts["short_lists"] == 201, "only `quiet` has seen nothing"


def test_seen_items_stay_when_they_may_and_k_may_be_larger_than_the_catalogue(tiny_data, by_hand, tmp_path):
    candidates, storage = generate(tiny_data, tmp_path, k=100, exclude_seen=False)
    for user, (item_ids, _) in lists_of(storage).items():
        assert item_ids == [name for _, name in ranked(by_hand, user, exclude_seen=False)]
        assert len(item_ids) == 62
    assert candidates.facts["short_lists"] == 202


def test_a_second_run_replaces_the_first_in_one_write_and_changes_nothing_when_it_fails(tiny_data, tmp_path):
    """Readers of the manifest before keep their parts; a failure after the first new part leaves all as it was."""
    storage = open_storage(str(tmp_path))
    generate(tiny_data, tmp_path)
    first = {key: storage.read_bytes(key) for key in storage.list(PREFIX)}
    path = tmp_path / "few.parquet"
    few = pq.read_table(tiny_data.data.timelines, filesystem=tiny_data.storage.filesystem).slice(0, 5)
    pq.write_table(few, path)
    data = dataclasses.replace(tiny_data.data, timelines=str(path))
    assert generate(tiny_data, tmp_path, data)[0].users == 5
    assert read_manifest(storage, PREFIX).version == "7"
    assert rows_of(storage, "recommendations").num_rows == 5
    parts = {key: data for key, data in first.items() if key.endswith(".parquet")}
    assert {key: storage.read_bytes(key) for key in parts} == parts, "the parts of the first are as they were"
    second = storage.read_bytes(f"{PREFIX}/manifest.json")

    # The pages are gone, the footer is there: the run fails when items are written and users are read.
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 2000 + whole[2004:])
    with pytest.raises(Exception, match=r"few\.parquet"):
        generate(tiny_data, tmp_path, data)
    assert storage.read_bytes(f"{PREFIX}/manifest.json") == second
    assert rows_of(storage, "recommendations").num_rows == 5


@pytest.mark.parametrize("shard_items", [1, 25, 61])
def test_a_catalogue_in_shards_gives_the_same_lists(made, tiny_data, tmp_path, shard_items):
    candidates, storage = generate(tiny_data, tmp_path, shard_items=shard_items)
    assert candidates.facts["shards"] == -(-62 // shard_items)
    assert made[0].facts["shards"] == 1
    assert lists_of(storage) == lists_of(made[1])
    vectors = (
        {row["user_id"]: row["embedding"] for row in rows_of(folder, "user_embeddings").to_pylist()}
        for folder in (storage, made[1])
    )
    assert next(vectors) == next(vectors), "histories read the same vectors"


def test_approximate_lists_are_measured_and_the_figure_is_stored(made, tiny_data, tmp_path):
    """So few items lie in one inverted list, so that all are found."""
    pytest.importorskip("faiss")
    candidates, storage = generate(tiny_data, tmp_path, engine="faiss_ivf", recall_users=50, shard_items=40)
    assert candidates.facts["recall"] >= 0.99
    assert read_manifest(storage, PREFIX).facts["recall"] == candidates.facts["recall"]
    assert read_manifest(storage, PREFIX).facts["engine"] == "faiss_ivf"
    same = [item_ids == lists_of(made[1])[user][0] for user, (item_ids, _) in lists_of(storage).items()]
    assert sum(same) >= 190
    assert "recall" not in made[0].facts


def test_approximate_lists_below_the_floor_stop_the_run(tiny_data, tmp_path):
    """Every item 30 times: which of the equal ones an inverted file finds first is chance."""
    pytest.importorskip("faiss")
    one = pq.read_table(tiny_data.data.catalogue_now, filesystem=tiny_data.storage.filesystem)
    many = pa.concat_tables(
        one.set_column(
            one.schema.get_field_index("item_index"),
            one.schema.field("item_index"),
            pc.cast(pc.add(one["item_index"], 62 * copy), one.schema.field("item_index").type),
        )
        for copy in range(30)
    )
    pq.write_table(many, tmp_path / "many.parquet")
    data = dataclasses.replace(tiny_data.data, catalogue_now=str(tmp_path / "many.parquet"), items=1860)
    with pytest.raises(GateError, match=r"probes 1 finds 0\.\d+ of the exact lists.*engine: exact"):
        generate(tiny_data, tmp_path, data, engine="faiss_ivf", probes=1)
    assert not list(tmp_path.rglob("manifest.json"))


def test_an_empty_catalogue_is_said(tiny_data, tmp_path):
    pq.write_table(CATALOGUE.empty_table(), tmp_path / "nothing.parquet")
    empty = dataclasses.replace(tiny_data.data, catalogue_now=str(tmp_path / "nothing.parquet"))
    with pytest.raises(DataError, match="the catalogue is empty"):
        generate(tiny_data, tmp_path, empty)


def test_empty_files_in_a_catalogue_change_nothing(made, tiny_data, tmp_path):
    rows = pq.read_table(tiny_data.data.catalogue_now, filesystem=tiny_data.storage.filesystem)
    folder = tmp_path / "catalogue"
    folder.mkdir()
    for name, part in (
        ("a", rows.slice(0, 0)),
        ("b", rows.slice(0, 20)),
        ("c", rows.slice(0, 0)),
        ("d", rows.slice(20)),
    ):
        pq.write_table(part, folder / f"{name}.parquet")
    data = dataclasses.replace(tiny_data.data, catalogue_now=str(folder))
    candidates, storage = generate(tiny_data, tmp_path, data, similar_items=5)
    assert candidates.items == 62
    assert lists_of(storage) == lists_of(made[1])
    assert rows_of(storage, "item_embeddings").num_rows == rows_of(storage, "similar_items").num_rows == 62


def test_only_parts_of_tasks_that_succeeded_are_listed(tmp_path):
    """A lost task leaves parts behind; what counts is what the tasks that ended well gave back."""
    from ray.data._internal.execution.interfaces import TaskContext

    from rec_ray.candidate_store.writer import PartsSink
    from rec_ray.schema import RECOMMENDATIONS

    storage = open_storage(str(tmp_path))
    sink = PartsSink(storage, "x", {"recommendations": RECOMMENDATIONS}, lists="item_ids")
    block = pa.table(
        {"user_id": ["a", "b"], "item_ids": [["x", "y"], []], "scores": [[1.0, 0.5], []], "method": ["model"] * 2}
    )
    sink.write([block], TaskContext(0, "lost"))
    again = sink.write([block, block.slice(0, 0), block.slice(1)], TaskContext(1, "done"))

    class Result:
        write_returns = [again]

    sink.on_write_complete(Result())
    list_names = {name: [(part.name, part.rows) for part in parts] for name, parts in sink.parts.items()}
    assert list_names == {"recommendations": [("part-000001-000.parquet", 2), ("part-000001-002.parquet", 1)]}
    assert sink.listed_items == 2
    assert sink.short_lists(2) == 2
    assert sink.short_lists(1) == 2
    assert sink.short_lists(0) == 0
    assert pc.sum(pc.list_value_length(pq.read_table(tmp_path / "x")["item_ids"])).as_py() == 4


def test_lists_of_dictionaries_are_stored_as_such_and_read_as_text(tmp_path, monkeypatch):
    """Each row group has the ids that occur in it once; whoever reads the file sees strings."""
    from ray.data._internal.execution.interfaces import TaskContext

    from rec_ray.candidate_store.writer import PartsSink
    from rec_ray.schema import RECOMMENDATIONS, require_columns

    monkeypatch.setattr("rec_ray.candidate_store.writer.ROW_GROUP", 2)
    names = pa.array(["x", "y", "z"])

    def named(rows):
        lists = rows["indices"].combine_chunks()
        ids = pa.DictionaryArray.from_arrays(lists.flatten(), names)
        first = lists.offsets[0].as_py()
        return rows.append_column("item_ids", pa.ListArray.from_arrays(pc.subtract(lists.offsets, first), ids))

    storage = open_storage(str(tmp_path))
    sink = PartsSink(storage, "x", {"recommendations": RECOMMENDATIONS}, lists="indices", prepare=named)
    block = pa.table(
        {
            "user_id": ["a", "b", "c"],
            "indices": pa.array([[0, 1], [], [2, 0]], pa.list_(pa.int32())),
            "scores": pa.array([[1.0, 0.5], [], [0.3, 0.2]], pa.list_(pa.float32())),
            "method": ["model"] * 3,
        }
    )
    written = sink.write([block], TaskContext(0, "done"))
    file = pq.ParquetFile(tmp_path / "x" / "recommendations" / written["parts"]["recommendations"][0].name)
    assert file.num_row_groups == 2
    for group in range(2):
        columns = [file.metadata.row_group(group).column(number) for number in range(file.metadata.num_columns)]
        encodings = {column.path_in_schema: column.encodings for column in columns}
        assert "RLE_DICTIONARY" in encodings["item_ids.list.element"]
        assert "RLE_DICTIONARY" not in encodings["scores.list.element"]
        assert [column.path_in_schema for column in columns if column.statistics] == ["user_id", "method"]
    require_columns(file.schema_arrow, RECOMMENDATIONS, what="the part")
    assert file.read()["item_ids"].to_pylist() == [["x", "y"], [], ["z", "x"]]
    assert file.read()["scores"].to_pylist()[0] == [1.0, 0.5]
