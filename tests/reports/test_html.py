"""Categories of the items in a report."""

import pytest

from rec_ray.reports.html import categories_of_items, category_field
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor
from rec_ray.schema import FeatureDeclaration


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
    assert categories_of_items({"i": value}, declaration) == ({} if category is None else {"i": category})
