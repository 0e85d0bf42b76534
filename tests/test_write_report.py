"""What is collected for a report: a map that is the same each time, and categories in people's words."""

import numpy as np
import pytest

from rec_ray.retrieval.preprocessing import FeaturePreprocessor
from rec_ray.schema import FeatureDeclaration
from rec_ray.write_report import _categories, category_field, principal_components


def test_principal_components_find_the_plane_of_points():
    generator = np.random.default_rng(0)
    plane = generator.normal(size=(50, 2)) * [5.0, 2.0]
    turn = np.linalg.qr(generator.normal(size=(8, 8)))[0][:2]
    places, share = principal_components(plane @ turn + 3.0)
    assert share == pytest.approx(1.0)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    assert np.allclose(np.linalg.norm(places[:, None] - places[None], axis=2), distances)
    assert np.allclose(places.mean(axis=0), 0)
    assert places[:, 0].std() > places[:, 1].std()
    assert (places.max(axis=0) >= -places.min(axis=0)).all()


@pytest.mark.parametrize("vectors", [np.zeros((1, 4)), np.ones((3, 4)), np.array([[1.0], [2.0]])])
def test_too_few_points_have_a_place_all_the_same(vectors):
    places, share = principal_components(vectors)
    assert places.shape == (len(vectors), 2)
    assert np.isfinite(places).all() and 0 <= share <= 1 + 1e-9


def test_a_path_is_preferred_and_a_field_of_one_value_colours_nothing():
    kinds = {"brand": "categorical", "tags": "categories", "path": "category_path", "price": "numeric"}
    declarations = {name: FeatureDeclaration(kind) for name, kind in kinds.items()}
    vocabularies = {"brand": ("a", "b"), "tags": ("x", "y"), "path": ("p", "p|q")}
    scales = {"price": (0.0, 1.0)}
    assert category_field(FeaturePreprocessor(declarations, scales, vocabularies)) == "path"
    lonely = vocabularies | {"path": ("p",)}
    assert category_field(FeaturePreprocessor(declarations, scales, lonely)) == "brand"
    assert category_field(FeaturePreprocessor({"price": declarations["price"]}, scales, {})) is None


@pytest.mark.parametrize(
    ("declaration", "value", "category"),
    [
        (FeatureDeclaration("category_path", separator="|"), "home|cups|red", "home"),
        (FeatureDeclaration("category_path", separator=" > "), "home > cups", "home"),
        (FeatureDeclaration("category_path"), ["home", "cups"], "home"),
        (FeatureDeclaration("categories", separator=","), " red,blue", "red"),
        (FeatureDeclaration("categories"), [], None),
        (FeatureDeclaration("categorical"), "red|blue", "red|blue"),
        (FeatureDeclaration("categorical"), 7, "7"),
        (FeatureDeclaration("categorical"), None, None),
    ],
)
def test_the_first_part_is_the_category(declaration, value, category):
    assert _categories({"i": value}, declaration) == ({} if category is None else {"i": category})
