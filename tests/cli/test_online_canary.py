"""The canary reads lists as a reader gets them: stored ones pass; emptied, missing and foreign ones are faults."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.candidate_store.manifest import CandidatesManifest, Part, write_manifest
from rec_ray.cli.online_canary import Canary, read_canary
from rec_ray.config import Settings
from rec_ray.runs.stores import open_object_store
from rec_ray.schema import RECOMMENDATIONS
from rec_ray.storage.model_store import candidates_folder

USERS = ["a", "b", "c", "d"]
LISTS = [["1", "2"], ["2"], [], ["3"]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, make_repo: Callable[..., Any]) -> Settings:
    """A repository with a view of lists, and candidates of version 4; user c has an empty list."""
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Array, Float32, String

    folder = tmp_path_factory.mktemp("canary")
    kinds = [("user_id", pa.string()), ("item_ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
    kinds += [("model_version", pa.string()), ("event_timestamp", pa.timestamp("us", "UTC"))]
    pq.write_table(pa.schema(kinds).empty_table(), folder / "lists.parquet")
    batch = FileSource(name="file", path=str(folder / "lists.parquet"), timestamp_field="event_timestamp")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    fields = {"item_ids": Array(String), "scores": Array(Float32), "model_version": String}
    view = FeatureView(
        name="user_items",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name=name, dtype=kind) for name, kind in fields.items()],
        source=PushSource(name="user_items_push_source", batch_source=batch),
    )
    make_repo(folder / "repo", [user, view])
    given = {"feast": {"repo": str(folder / "repo")}, "storage": {"url": str(folder / "store")}}
    made = Settings.model_validate(given)
    storage, prefix = open_object_store(made), candidates_folder("4")
    storage.filesystem.create_dir(storage.path(prefix, "recommendations"), recursive=True)
    rows = pa.table([USERS, LISTS, [[0.5] * len(each) for each in LISTS], ["model"] * 4], schema=RECOMMENDATIONS)
    pq.write_table(rows, storage.path(prefix, "recommendations", "part.parquet"), filesystem=storage.filesystem)
    part = Part("part.parquet", 4, 1, "0" * 64)
    parts = {"user_embeddings": (part,), "recommendations": (part,), "item_embeddings": ()}
    write_manifest(storage, prefix, CandidatesManifest("4", parts, users=4))
    return made


def push(settings: Settings, lists: dict[str, list[str]], version: str = "4") -> None:
    from rec_ray.runs.context import open_feature_store

    rows = {"user_id": list(lists), "item_ids": list(lists.values()), "model_version": [version] * len(lists)}
    frame = pd.DataFrame(rows | {"scores": [[0.5]] * len(lists)})
    frame["event_timestamp"] = pd.Timestamp.now(tz="UTC")
    open_feature_store(settings).push("user_items_push_source", frame)


def test_missing_stored_emptied_and_foreign_lists(settings: Settings) -> None:
    storage = open_object_store(settings)

    def read() -> Canary:
        return read_canary(settings, storage, "4", 5)

    remedy = "; run: rec-ray publish 4"
    found = read()
    assert (found.read, found.same) == (3, 0), "user c has no list to compare with"
    assert found.fault == "the online store has no list for 3 of 3 users who have one in version 4" + remedy
    push(settings, dict(zip(USERS, LISTS, strict=True)))
    assert read() == Canary(3, 3)
    push(settings, {"b": []})
    assert read() == Canary(3, 2, "the online store has no list for 1 of 3 users who have one in version 4" + remedy)
    push(settings, dict(zip(USERS, LISTS, strict=True)))
    push(settings, {"a": ["9"]}, version="5")
    assert read() == Canary(3, 2, "the online store has lists of version 5, and version 4 is live" + remedy)
