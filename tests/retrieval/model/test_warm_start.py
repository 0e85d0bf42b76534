"""Weights under newer vocabularies: what both models know has the same vectors, what is new begins as the unknown."""

import dataclasses
from typing import Any

import pyarrow as pa
import pytest
import torch

from rec_ray.errors import BundleError
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, Preprocessor
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower
from rec_ray.retrieval.model.warm_start import carry_over, load_start, share_unknown_row
from rec_ray.schema import FeatureDeclaration
from tests.retrieval.tensors import to_batch

SCALES = {"price": (10.0, 5.0), "weight": (1.0, 2.0)}
ROWS = pa.table(
    {
        "price": [1.0, 20.0, None],
        "weight": [1.0, 1.0, 1.0],
        "brand": ["acme", "zeta", "nobody"],
        "title": ["blue cup", "red cup", "tea"],
        "image": [[1.0, 2.0], [0.5, -1.0], [0.0, 0.0]],
    }
)


def features(names: list[str], brands: tuple[str, ...]) -> FeaturePreprocessor:
    kinds = {
        "price": FeatureDeclaration("numeric"),
        "weight": FeatureDeclaration("numeric"),
        "brand": FeatureDeclaration("categorical"),
        "title": FeatureDeclaration("text"),
        "image": FeatureDeclaration("vector", length=2),
    }
    declared = {name: kinds[name] for name in names}
    scales = {name: SCALES[name] for name in names if name in SCALES}
    return FeaturePreprocessor(declared, scales, {"brand": brands}, 8 if "title" in names else 0)


def arguments_of(preprocessor: Preprocessor, **changes: Any) -> dict[str, Any]:
    arguments = {
        "vocabulary_size": preprocessor.vocabulary_size,
        "item_shape": dataclasses.asdict(preprocessor.items.shape),
        "user_shape": dataclasses.asdict(preprocessor.users.shape),
        "event_types": len(preprocessor.event_types) + 1,
        "embedding_size": 8,
        "history_length": 4,
        "layers": 1,
    }
    return arguments | changes


NO_FEATURES = FeaturePreprocessor({}, {}, {})
THEN = Preprocessor(
    NO_FEATURES, features(["price", "brand", "title", "image"], ("acme", "zeta")), ("a", "b", "c"), ("buy", "view")
)
NOW = Preprocessor(
    NO_FEATURES,
    features(["title", "weight", "brand", "price", "image"], ("new", "zeta", "acme")),
    ("b", "bb", "c"),
    ("add", "buy", "view"),
)


def live(*, refitted: bool = False) -> TwoTowerBundle:
    arguments = arguments_of(THEN)
    torch.manual_seed(1)
    towers = [build_two_tower(**arguments).eval() for _ in range(2)]
    with torch.no_grad():
        for model in towers:
            for parameter in model.parameters():
                parameter.normal_()
    return TwoTowerBundle(towers[0], arguments, THEN, {}, evaluated=towers[1] if refitted else None)


def items_of(model: TwoTower, preprocessor: Preprocessor, ids: list[str]) -> torch.Tensor:
    index = torch.from_numpy(preprocessor.encode_item_ids(pa.array(ids))).long()
    return model.eval().embed_items(index, to_batch(preprocessor.items.encode(ROWS)))


@pytest.fixture
def carried() -> tuple[TwoTower, torch.Tensor]:
    model = build_two_tower(**arguments_of(NOW))
    return model, load_start(carry_over(live(), arguments_of(NOW), NOW), model)


@torch.no_grad()
def test_items_keep_their_vectors_though_every_vocabulary_has_moved(carried: tuple[TwoTower, torch.Tensor]) -> None:
    model, known = carried
    assert known.tolist() == [False, True, False, True]
    before = items_of(live().model, THEN, ["b", "c", "a"])
    after = items_of(model, NOW, ["b", "c", "gone"])
    torch.testing.assert_close(after[:2], before[:2])
    assert not torch.allclose(after[2], before[2])


@torch.no_grad()
def test_new_items_and_values_begin_as_the_unknown_ones(carried: tuple[TwoTower, torch.Tensor]) -> None:
    model, _ = carried
    torch.testing.assert_close(
        items_of(model, NOW, ["bb", "bb", "bb"]), items_of(live().model, THEN, ["bb", "bb", "bb"])
    )
    tokens = model.item_tower.features.tokens
    assert tokens is not None
    new = NOW.items.token_offsets["brand"]
    torch.testing.assert_close(tokens.weight[new], tokens.weight[0])


@torch.no_grad()
def test_event_types_keep_their_rows_by_name(carried: tuple[TwoTower, torch.Tensor]) -> None:
    then, now = (
        model.state_dict()["user_tower.history.events.event_type.weight"] for model in (live().model, carried[0])
    )
    torch.testing.assert_close(now, then[[0, 0, 1, 2]])


def test_the_towers_before_the_refit_are_taken_where_there_are_any() -> None:
    model = build_two_tower(**arguments_of(NOW))
    load_start(carry_over(live(refitted=True), arguments_of(NOW), NOW), model)
    evaluated = live(refitted=True).evaluated
    assert evaluated is not None
    torch.testing.assert_close(model.item_tower.ids.weight[1], evaluated.item_tower.ids.weight[2])


def test_towers_of_another_build_are_refused() -> None:
    with pytest.raises(BundleError, match=r"built with embedding_size=8, the settings have 16; use the same, or set"):
        carry_over(live(), arguments_of(NOW, embedding_size=16), NOW)


def test_rows_without_anything_learned_take_that_of_the_unknown_item() -> None:
    weights = {"item_tower.ids.weight": torch.arange(8.0).view(4, 2)}
    share_unknown_row(weights, torch.tensor([0, 2]))
    assert weights["item_tower.ids.weight"].tolist() == [[0, 1], [2, 3], [0, 1], [6, 7]]
