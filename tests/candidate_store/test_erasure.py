"""Forgotten users and items are in no table, and the rows of others are as they were."""

from pathlib import Path

import pyarrow as pa
import pytest

from rec_ray.candidate_store.erasure import Erased
from rec_ray.schema import RECOMMENDATIONS, SIMILAR_ITEMS
from rec_ray.versions.registry import VersionDatabase

LISTS = pa.table(
    [["a", "b", "c"], [["i1", "i2"], [], ["i2", "i3", "i1"]], [[0.9, 0.8], [], [0.7, 0.5, 0.25]], ["model"] * 3],
    schema=RECOMMENDATIONS,
)


def test_rows_of_users_go_and_items_leave_the_lists_with_their_scores() -> None:
    found = Erased.of(["b"], ["i2"]).without(LISTS)
    assert found.schema == LISTS.schema
    assert found["user_id"].to_pylist() == ["a", "c"]
    assert found["item_ids"].to_pylist() == [["i1"], ["i3", "i1"]]
    assert found["scores"].to_pylist() == [pytest.approx([0.9]), pytest.approx([0.5, 0.25])]


def test_rows_of_items_go_and_the_others_lose_them() -> None:
    similar = pa.table([["i1", "i2"], [["i2", "i3"], ["i1"]], [[0.5, 0.25], [0.5]]], schema=SIMILAR_ITEMS)
    found = Erased.of(items=["i2"]).without(similar)
    assert found.to_pylist() == [{"item_id": "i1", "similar_item_ids": ["i3"], "similar_scores": [0.25]}]


def test_a_table_without_them_is_given_back_itself() -> None:
    """So that whoever asks knows that nothing has to be written anew."""
    assert Erased().without(LISTS) is LISTS
    assert Erased.of(["z"], ["i9"]).without(LISTS) is LISTS
    sliced = LISTS.slice(1)
    assert Erased.of(items=["i3"]).without(sliced)["item_ids"].to_pylist() == [[], ["i2", "i1"]]


def test_null_ids_and_columns_that_are_not_there() -> None:
    """Query rows of a timeline have no item."""
    table = pa.table({"user_id": ["a", "b", None], "item_id": [None, "i1", "i2"]})
    assert Erased.of(["b"], ["i2"]).without(table).to_pylist() == [{"user_id": "a", "item_id": None}]
    assert Erased.of(["b"]).without(pa.table({"x": [1]})).num_rows == 1


def test_the_database_keeps_hashes_alone(tmp_path: Path) -> None:
    database = VersionDatabase(f"sqlite:///{tmp_path}/versions.db")
    assert not database.erased()
    database.erase(["a secret id", "b"], ["i1"])
    database.erase(["b", "c"], [])
    assert database.erased() == Erased.of(["a secret id", "b", "c"], ["i1"])
    assert b"a secret id" not in (tmp_path / "versions.db").read_bytes()
