"""A feature that only a stored model reads is unknown in every row, of whatever kind it is."""

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.config import FeatureSettings
from rec_ray.data.removed_features import TYPES, add_nulls, removed_features
from rec_ray.retrieval.features.preprocessing import Preprocessor, collect_statistics, fit_features
from rec_ray.schema import FeatureDeclaration

DECLARED = {
    "age": FeatureDeclaration("numeric"),
    "since": FeatureDeclaration("timestamp"),
    "city": FeatureDeclaration("categorical"),
    "tags": FeatureDeclaration("categories", separator="|"),
    "path": FeatureDeclaration("category_path", separator="|"),
    "about": FeatureDeclaration("text"),
    "image": FeatureDeclaration("vector", length=2),
}
ROWS = pa.table(
    {
        "age": [20.0, 40.0],
        "since": pa.array([0, 1_000_000_000_000], pa.timestamp("us", "UTC")),
        "city": ["Rome", "Oslo"],
        "tags": ["a|b", "b"],
        "path": ["x|y", "x"],
        "about": ["red cup", "blue cup"],
        "image": [[0.0, 1.0], [1.0, 0.0]],
    }
)


@pytest.mark.parametrize("name", DECLARED)
def test_a_removed_feature_is_encoded_as_a_missing_value(name: str) -> None:
    fitted = fit_features(collect_statistics(ROWS, DECLARED), DECLARED, text_buckets=8, max_vocabulary=100)
    without = ROWS.drop_columns([name])
    filled = add_nulls(without, {name: TYPES.get(DECLARED[name].kind, pa.string())})
    nulls = pa.nulls(2, ROWS.schema.field(name).type)
    expected = fitted.encode(without.append_column(name, nulls))
    found = fitted.encode(filled)
    for field in ("numeric", "token_counts", "tokens", "vector"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    assert add_nulls(ROWS, {name: pa.string()}).equals(ROWS), "a column that is there stays"


def test_only_features_that_the_settings_lack_are_removed_ones() -> None:
    fitted = fit_features(collect_statistics(ROWS, DECLARED), DECLARED, text_buckets=8, max_vocabulary=100)
    nothing = fit_features(collect_statistics(ROWS, {}), {}, text_buckets=8, max_vocabulary=100)
    model = Preprocessor(users=fitted, items=nothing, item_ids=("i",), event_types=())
    kept = {name: declaration for name, declaration in DECLARED.items() if name not in ("age", "about")}
    assert removed_features(model, FeatureSettings(user=kept)) == ("age", "about")
    assert removed_features(model, FeatureSettings(user=DECLARED)) == ()
