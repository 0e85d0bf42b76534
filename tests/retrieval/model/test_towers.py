"""Towers and the shape of their data: ragged features, unknown ids, positions, similarity, a rebuilt model."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from rec_ray.retrieval.features.batch import FeatureBatch, FeatureShape
from rec_ray.retrieval.features.timelines import TimelineInputs
from rec_ray.retrieval.learning.attempts import measure_spread
from rec_ray.retrieval.model import towers
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower

ITEM_SHAPE = FeatureShape(numeric=2, fields=2, tokens=10, vector=3)
USER_SHAPE = FeatureShape(numeric=1, fields=1, tokens=5)
NO_ITEMS = torch.zeros(0, dtype=torch.long)
"""For inputs whose history comes as vectors."""
ARGUMENTS = {
    "vocabulary_size": 7,
    "item_shape": dataclasses.asdict(ITEM_SHAPE),
    "user_shape": dataclasses.asdict(USER_SHAPE),
    "embedding_size": 8,
    "history_length": 5,
    "event_types": 3,
}

SHAPELESS = dataclasses.asdict(FeatureShape())


def features(shape: FeatureShape, rows: int, seed: int = 0) -> FeatureBatch:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (rows, shape.fields))
    return FeatureBatch.from_numpy(
        rng.normal(size=(rows, shape.numeric)),
        rng.integers(0, max(shape.tokens, 1), counts.sum()),
        counts,
        rng.normal(size=(rows, shape.vector)),
    )


def timeline_arguments(model: TwoTower, b: int = 2, length: int = 4) -> tuple[Tensor, ...]:
    items = model.embed_items(torch.arange(1, 7), features(ITEM_SHAPE, 6))
    index = torch.arange(b * length).reshape(b, length) % 6
    return items[index], index % 3, index * 100, torch.tensor([length] * (b - 1) + [1])


def bags(batch: FeatureBatch) -> list[list[list[int]]]:
    tokens = batch.tokens.tolist()
    return [[[tokens.pop(0) for _ in range(n)] for n in row] for row in batch.token_counts.tolist()]


def test_select_takes_rows_with_their_ragged_tokens() -> None:
    batch = features(ITEM_SHAPE, 6)
    rows = torch.tensor([5, 0, 0, 3])
    chosen = batch.select(rows)
    assert bags(chosen) == [bags(batch)[row] for row in rows.tolist()]
    torch.testing.assert_close(chosen.numeric, batch.numeric[rows])
    torch.testing.assert_close(chosen.vector, batch.vector[rows])
    assert len(batch.select(torch.zeros(0, dtype=torch.long))) == 0
    assert bags(FeatureBatch.empty(3).select(torch.tensor([1, 2]))) == [[], []]


def test_feature_arrays_that_disagree_are_refused() -> None:
    counts = np.array([[1], [2]])
    with pytest.raises(ValueError, match=r"add up to 3.*2 tokens"):
        FeatureBatch.from_numpy(np.zeros((2, 0)), np.zeros(2), counts, np.zeros((2, 0)))
    with pytest.raises(ValueError, match="one row per entity"):
        FeatureBatch.from_numpy(np.zeros((1, 0)), np.zeros(3), counts, np.zeros((2, 0)))
    with pytest.raises(ValueError, match="token table"):
        FeatureShape(fields=1)


def test_an_item_vector_is_its_id_plus_the_mean_of_each_bag_plus_its_numbers() -> None:
    model = build_two_tower(**ARGUMENTS, similarity="dot").eval()  # type: ignore[arg-type]
    tower, batch = model.item_tower, features(ITEM_SHAPE, 3)
    assert tower.features.tokens is not None and tower.features.dense is not None
    index = torch.tensor([4, 0, 6])
    table, dense = tower.features.tokens.weight, tower.features.dense
    expected = tower.ids.weight[index] + dense(torch.cat([batch.numeric, batch.vector], dim=1))
    for row, fields in enumerate(bags(batch)):
        for bag in fields:
            if bag:
                expected[row] = expected[row] + table[bag].mean(0)
    torch.testing.assert_close(model.embed_items(index, batch), expected)


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("numbers", [0, 1, 30])
@pytest.mark.parametrize("fields", [0, 1, 8])
@pytest.mark.parametrize("vector", [0, 512])
def test_fresh_items_differ_and_have_a_short_mean_whatever_their_features(
    ids: bool, numbers: int, fields: int, vector: int
) -> None:
    """No feature drowns the others: with ids vectors fill the space, without them as much of it as features span."""
    if not (ids or numbers + fields + vector):
        return
    torch.manual_seed(3)
    rows = 500
    shape = FeatureShape(numeric=2 * numbers, fields=fields, tokens=1 + 20 * fields, vector=vector)
    numeric = torch.randn(rows, 2 * numbers)
    numeric[:, 1::2] = 0.0
    tokens = torch.stack([1 + 20 * f + torch.randint(20, (rows,)) for f in range(fields)], 1) if fields else None
    batch = FeatureBatch.from_numpy(
        numeric.numpy(),
        np.zeros(0, np.int32) if tokens is None else tokens.reshape(-1).int().numpy(),
        np.ones((rows, fields), np.int32),
        torch.randn(rows, vector).numpy(),
    )
    model = build_two_tower(
        vocabulary_size=rows + 1,
        item_shape=dataclasses.asdict(shape),
        user_shape=dataclasses.asdict(shape),
    ).eval()
    index = torch.arange(1, rows + 1) if ids else torch.zeros(rows, dtype=torch.long)
    with torch.no_grad():
        items = model.embed_items(index, batch)
        users = model.user_tower.features(batch)
    rank, cosine = measure_spread(items)
    span = min(numbers + 19 * fields + vector, 64)
    assert abs(cosine) < 0.2
    assert rank > (25 if ids else 0.4 * span**0.8)
    if numbers + fields + vector:
        assert abs(measure_spread(users)[1]) < 0.2
        parts = model.item_tower.features(batch).norm(dim=1).mean().detach()
        assert 0.5 < float(parts / model.item_tower.ids.weight[1:].norm(dim=1).mean().detach()) < 2


def test_a_feature_that_all_items_share_does_not_make_them_alike() -> None:
    """One category, and a number that is missing everywhere."""
    shape = FeatureShape(numeric=2, fields=1, tokens=2)
    batch = FeatureBatch.from_numpy(
        np.tile(np.float32([[0.0, 1.0]]), (300, 1)),
        np.ones(300, np.int32),
        np.ones((300, 1), np.int32),
        np.zeros((300, 0), np.float32),
    )
    model = build_two_tower(vocabulary_size=301, item_shape=dataclasses.asdict(shape), user_shape=SHAPELESS).eval()
    with torch.no_grad():
        rank, cosine = measure_spread(model.embed_items(torch.arange(1, 301), batch))
    assert rank > 10 and cosine < 0.5


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_only_cosine_makes_vectors_of_unit_length(similarity: str) -> None:
    model = build_two_tower(**ARGUMENTS, similarity=similarity).eval()  # type: ignore[arg-type]
    vectors, event_type, gap, length = timeline_arguments(model)
    rows = torch.zeros(2, 5, dtype=torch.long)
    users = model.embed_timelines(
        vectors, TimelineInputs(NO_ITEMS, event_type, gap, length, features(USER_SHAPE, 1), rows)
    )
    for made in (vectors, users):
        unit = torch.allclose(made.norm(dim=-1), torch.ones(made.shape[:-1]), atol=1e-5)
        assert unit == (similarity == "cosine")


def test_id_dropout_lets_features_speak_in_training_only() -> None:
    torch.manual_seed(0)
    model = build_two_tower(**ARGUMENTS, id_dropout=0.5)  # type: ignore[arg-type]
    batch = features(ITEM_SHAPE, 1).select(torch.zeros(400, dtype=torch.long))
    index = torch.full((400,), 3)
    unknown = model.eval().embed_items(torch.zeros(1, dtype=torch.long), batch.select(torch.tensor([0])))
    dropped = torch.isclose(model.train().embed_items(index, batch), unknown, atol=1e-6).all(1)
    assert 140 < int(dropped.sum()) < 260
    assert not torch.isclose(model.eval().embed_items(index, batch), unknown, atol=1e-6).all(1).any()


def test_without_features_there_is_no_id_dropout() -> None:
    model = build_two_tower(vocabulary_size=5, item_shape={}, user_shape={}, id_dropout=0.9)
    assert model.item_tower.id_dropout == 0


@pytest.mark.parametrize("history", ["none", "mean", "transformer"])
def test_each_position_reads_the_user_features_of_its_row(history: str) -> None:
    model = build_two_tower(**ARGUMENTS, history=history).eval()  # type: ignore[arg-type]
    arguments, users = timeline_arguments(model), features(USER_SHAPE, 3)
    rows = torch.tensor([[0, 0, 1, 1, 2], [2, 1, 0, 0, 0]])
    vectors, *others = arguments
    mixed = model.embed_timelines(vectors, TimelineInputs(NO_ITEMS, *others, users, rows))
    assert mixed.shape == (2, 5, 8)
    for row in range(3):
        inputs = TimelineInputs(NO_ITEMS, *others, users, torch.full_like(rows, row))
        same = model.embed_timelines(vectors, inputs)
        torch.testing.assert_close(mixed[rows == row], same[rows == row])
    rows_of_vectors = torch.arange(vectors.shape[0] * vectors.shape[1]).view(vectors.shape[:2])
    inputs = TimelineInputs(rows_of_vectors, *others, users, rows)
    embedded = model.embed_users(vectors.flatten(0, 1), inputs)
    torch.testing.assert_close(embedded, torch.stack([mixed[0, 4], mixed[1, 1]]))


def test_a_model_is_rebuilt_from_json_and_weights() -> None:
    model = build_two_tower(**ARGUMENTS).eval()  # type: ignore[arg-type]
    again = build_two_tower(**json.loads(json.dumps(ARGUMENTS))).eval()
    again.load_state_dict(model.state_dict())
    batch, index = features(ITEM_SHAPE, 6), torch.arange(1, 7)
    torch.testing.assert_close(again.embed_items(index, batch), model.embed_items(index, batch), rtol=0, atol=0)


@pytest.mark.parametrize("table_rows", ["small", "large"])
def test_only_large_tables_have_sparse_gradients(monkeypatch: pytest.MonkeyPatch, table_rows: str) -> None:
    monkeypatch.setattr(towers, "SPARSE_ROWS", 1 if table_rows == "large" else 1_000_000)
    model = build_two_tower(**ARGUMENTS)  # type: ignore[arg-type]
    (vectors, *others), rows = timeline_arguments(model), torch.zeros(2, 5, dtype=torch.long)
    inputs = TimelineInputs(NO_ITEMS, *others, features(USER_SHAPE, 1), rows)
    model.embed_timelines(vectors, inputs).square().sum().backward()
    sparse, dense = model.sparse_parameters(), model.dense_parameters()
    assert len(sparse) == 3 and len(sparse) + len(dense) == len(list(model.parameters()))
    assert all(p.grad is not None and p.grad.is_sparse == (table_rows == "large") for p in sparse)
    assert not any(p.grad is not None and p.grad.is_sparse for p in dense)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="'none', 'mean' or 'transformer'"):
        build_two_tower(vocabulary_size=5, item_shape={}, user_shape={}, history="gru")
    with pytest.raises(ValueError, match="'cosine' or 'dot'"):
        build_two_tower(vocabulary_size=5, item_shape={}, user_shape={}, similarity="l2")


@pytest.mark.parametrize(("dropout", "read"), [(0.2, 0.75), (0.0, 1.0)])
def test_second_rows_are_left_out_now_and_then_in_training_where_there_is_dropout(dropout: float, read: float) -> None:
    model = build_two_tower(vocabulary_size=9, item_shape={}, user_shape={}, history_rows=True, dropout=dropout)
    tower, items = model.item_tower, torch.full((4000,), 3)
    plain = torch.zeros(4000, 64)
    assert (tower.as_history(plain, items) != 0).any(1).float().mean() == pytest.approx(read, abs=0.05)
    tower.eval()
    assert (tower.as_history(plain, items) == tower.history_ids.weight[3]).all()
