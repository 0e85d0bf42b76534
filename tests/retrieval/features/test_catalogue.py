"""The encoded catalogue: rows in any order and any cut come back as items 1 .. n behind a row of padding."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from rec_ray.errors import DataError
from rec_ray.retrieval.features.catalogue import CATALOGUE, Catalogue, catalogue_rows
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, collect_statistics, fit_features
from rec_ray.retrieval.model.towers import build_two_tower
from rec_ray.schema import FeatureDeclaration
from tests.retrieval.tensors import to_batch

IDS = ["a", "b", "naïve", "x" * 4000, "z"]
DECLARATIONS = {
    "price": FeatureDeclaration("numeric"),
    "tags": FeatureDeclaration("categories"),
    "name": FeatureDeclaration("text"),
    "image": FeatureDeclaration("vector", length=2),
}
ITEMS = pa.table(
    {
        "price": [1.0, None, 3.0, 4.0, 2.0],
        "tags": [["p", "q"], None, [], ["q"], ["new", "p"]],
        "name": ["red cup", None, "cup", "", "tea cup"],
        "image": [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
    }
)


def fitted() -> FeaturePreprocessor:
    statistics = collect_statistics(ITEMS.slice(0, 4), DECLARATIONS)
    return fit_features(statistics, DECLARATIONS, text_buckets=8, max_vocabulary=9)


def rows(preprocessor: FeaturePreprocessor) -> pa.Table:
    return catalogue_rows(
        np.arange(1, 6),
        pa.array(IDS),
        np.array([1, 2, 0, 3, 0]),
        np.array([True, True, False, True, True]),
        np.array([4, 1, 0, 2, 0]),
        preprocessor.encode(ITEMS),
    )


def assert_items(catalogue: Catalogue, preprocessor: FeaturePreprocessor) -> None:
    assert len(catalogue) == 5
    assert catalogue.item_ids.to_pylist() == IDS
    assert catalogue.id_index.tolist() == [0, 1, 2, 0, 3, 0]
    assert catalogue.known.tolist() == [False, True, True, False, True, True]
    assert catalogue.count.tolist() == [0, 4, 1, 0, 2, 0]
    expected = to_batch(preprocessor.encode(ITEMS))
    own = catalogue.features.select(torch.arange(1, 6))
    for name in ("numeric", "tokens", "token_counts", "vector"):
        assert getattr(own, name).tolist() == getattr(expected, name).tolist(), name
    padding = catalogue.features.select(torch.tensor([0]))
    assert not padding.numeric.any() and not padding.vector.any() and not len(padding.tokens)


def test_rows_in_any_order_cut_and_layout_become_the_same_catalogue() -> None:
    preprocessor = fitted()
    table = rows(preprocessor)
    assert table.schema == CATALOGUE
    shuffled = table.take([3, 0, 4, 2, 1])
    parts = pa.concat_tables([table.slice(3), table.slice(0, 0), table.slice(1, 2), table.slice(0, 1)])
    sliced = pa.concat_tables([table, table]).combine_chunks().slice(3, 5)
    large = pa.schema(
        [
            f.with_type(pa.large_list(f.type.value_type)) if pa.types.is_list(f.type)
            else f.with_type(pa.large_string()) if f.name == "item_id" else f
            for f in CATALOGUE
        ]
    )  # fmt: skip
    for each in (table, shuffled, parts, sliced, table.cast(large)):
        assert_items(Catalogue.from_table(each, preprocessor.shape), preprocessor)
    assert_items(Catalogue.from_table(table, preprocessor.shape).to("cpu"), preprocessor)


@pytest.mark.parametrize("chosen", [[0, 1, 3, 4], [0, 1, 2, 3, 4, 4], [1, 2, 3, 4], [0, 0]])
def test_an_index_that_is_missing_or_there_twice_is_refused(chosen: list[int]) -> None:
    preprocessor = fitted()
    with pytest.raises(DataError, match=f"has {len(chosen)} rows; expected the indices 1 to {len(chosen)}"):
        Catalogue.from_table(rows(preprocessor).take(chosen), preprocessor.shape)


def test_a_catalogue_without_items_or_without_features() -> None:
    preprocessor = fitted()
    empty = Catalogue.from_table(CATALOGUE.empty_table(), preprocessor.shape)
    assert len(empty) == 0 and empty.known.tolist() == [False] and len(empty.features) == 1
    nothing = fit_features(collect_statistics(ITEMS, {}), {}, text_buckets=8, max_vocabulary=9)
    plain = Catalogue.from_table(rows(nothing), nothing.shape)
    assert len(plain) == 5 and len(plain.features) == 6 and plain.features.numeric.shape == (6, 0)


def test_items_are_embedded_by_their_id_and_features_in_the_order_asked_for() -> None:
    preprocessor = fitted()
    catalogue = Catalogue.from_table(rows(preprocessor), preprocessor.shape)
    torch.manual_seed(0)
    model = build_two_tower(
        vocabulary_size=4,
        item_shape=vars(preprocessor.shape),
        user_shape={},
        embedding_size=8,
        history="mean",
        similarity="dot",
    ).eval()
    vectors = catalogue.embed(model, torch.tensor([5, 1, 1, 3]))
    assert vectors.shape == (4, 8)
    torch.testing.assert_close(vectors[1], vectors[2])
    alone = model.embed_items(torch.tensor([0]), to_batch(preprocessor.encode(ITEMS.slice(2, 1))))
    torch.testing.assert_close(vectors[3], alone[0])
    assert not torch.allclose(vectors[0], vectors[3])
