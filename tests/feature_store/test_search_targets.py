"""The views that are searched: asked for and missing, there and not fed, of another length or metric."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored_versions import search_view

from rec_ray.config import SearchSettings
from rec_ray.errors import ConfigError, SchemaError
from rec_ray.feature_store.search_targets import check_search_targets, find_search_targets, list_unfed_views

TEXTS, IMAGES = "item_textual_features_embed", "item_clip_features_embed"
DIMENSIONS = {TEXTS: {"about_product_embedding": 384}}
ENCODER = SearchSettings(text_encoder="transformers:some")


@pytest.fixture
def open_store(tmp_path: Path, make_repo: Callable[..., Any]) -> Callable[..., Any]:
    """Give `open_store(source=fields, ..., **vector)`: a repository with such views and nothing else."""

    def make(views: dict[str, list[str]], **vector: Any) -> Any:
        from feast import Entity, ValueType

        item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
        found = [search_view(tmp_path, source, views[source], **vector) for source in views]
        return make_repo(tmp_path, [item, *found])

    return make


def test_a_view_that_is_there_needs_an_encoder_and_an_encoder_a_view(open_store: Callable[..., Any]) -> None:
    store = open_store({TEXTS: ["about_product_embedding"]})
    (note,) = list_unfed_views(store, SearchSettings())
    assert TEXTS in note and "set search.text_encoder" in note
    assert list_unfed_views(store, ENCODER) == []
    assert find_search_targets(store, SearchSettings()) == {}
    target = find_search_targets(store, ENCODER)[f"search/{TEXTS}"]
    assert (target.entity, list(target.vectors)) == ("item_id", ["about_product_embedding"])
    check_search_targets(store, ENCODER, DIMENSIONS)
    images = SearchSettings(image_encoder="transformers:some")
    with pytest.raises(ConfigError, match=f"search.image_encoder is set, but no .* '{IMAGES}'; declare a view"):
        find_search_targets(store, images)


def test_a_view_has_exactly_the_fields_that_are_declared(open_store: Callable[..., Any]) -> None:
    store = open_store({TEXTS: ["about_product_embedding", "product_name"]})
    with pytest.raises(SchemaError, match=r"has the fields 'product_name'.*declare them in section `search`"):
        find_search_targets(store, ENCODER)
    views = {TEXTS: {"about_product_embedding": ["about_product"], "title": ["product_name"]}}
    with pytest.raises(SchemaError, match=r"has no field 'title'"):
        find_search_targets(store, SearchSettings.model_validate({**ENCODER.model_dump(), "text_views": views}))


def test_a_vector_must_have_the_length_of_the_view(open_store: Callable[..., Any]) -> None:
    store = open_store({TEXTS: ["about_product_embedding"]}, vector_length=512)
    with pytest.raises(SchemaError, match=r"takes vectors of 512 numbers as 'about_product_embedding'.* makes 384"):
        check_search_targets(store, ENCODER, DIMENSIONS)


@pytest.mark.parametrize(("metric", "fits"), [("dot", True), ("COSINE", True), ("L2", False)])
def test_a_metric_must_order_as_the_cosine_does(open_store: Callable[..., Any], metric: str, fits: bool) -> None:
    store = open_store({TEXTS: ["about_product_embedding"]}, vector_search_metric=metric)
    if fits:
        check_search_targets(store, ENCODER, DIMENSIONS)
    else:
        with pytest.raises(SchemaError, match=r"the vector metric 'L2'.*compare by cosine"):
            check_search_targets(store, ENCODER, DIMENSIONS)
