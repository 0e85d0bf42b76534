"""Texts become a feature by a real language model: once for each text, kept by its hash, and known to the bundle."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.config import FeatureSettings
from rec_ray.contracts import FeatureTables, RowCounts
from rec_ray.errors import SchemaError
from rec_ray.schema import FeatureDeclaration, SplitTimes

THEN = datetime(2024, 1, 1, tzinfo=UTC)
NAMES = ["red cup", "blue cup", "red cup", None, "  ", "steel hammer"]


def test_fields_are_joined_and_nothing_but_blanks_is_no_text():
    from rec_ray.item_vectors.texts import join_texts

    items = pa.table({"name": NAMES[:5], "note": ["warm", None, "cold", "kept", ""]})
    assert join_texts(items, ["name", "note"]).to_pylist() == [
        "red cup\nwarm",
        "blue cup",
        "red cup\ncold",
        "kept",
        None,
    ]
    with pytest.raises(SchemaError, match="no item feature 'title'"):
        join_texts(items, ["title"])
    with pytest.raises(SchemaError, match="declared as text"):
        join_texts(pa.table({"name": [["a"]]}), ["name"])


def test_the_vector_stands_in_the_place_of_the_texts():
    from rec_ray.data.item_texts import with_text_vector

    features = FeatureSettings(item={"name": FeatureDeclaration("text"), "price": FeatureDeclaration("numeric")})
    changed = with_text_vector(features, 384)
    assert changed.item == {
        "price": FeatureDeclaration("numeric"),
        "text_vector": FeatureDeclaration("vector", length=384),
    }
    with pytest.raises(SchemaError, match="has the name"):
        with_text_vector(changed, 384)


@pytest.fixture(scope="module")
def encoded(local_ray, tmp_path_factory, text_model):
    """Encode six items, then the same and a seventh."""
    from rec_ray.data.item_texts import encode_item_text
    from rec_ray.storage.object_store import open_storage

    storage = open_storage(str(tmp_path_factory.mktemp("store")))
    features = FeatureSettings(item={"name": FeatureDeclaration("text")})

    def encode(names):
        items = local_ray.data.from_arrow(pa.table({"item_id": [f"i{n}" for n in range(len(names))], "name": names}))
        tables = FeatureTables(items, items, SplitTimes(THEN, THEN, THEN), RowCounts(0, 0))
        text = encode_item_text(tables, features, f"transformers:{text_model}", storage)
        rows = {row["item_id"]: row["text_vector"] for row in text.tables.items.take_all()}
        return text, rows

    return storage, encode(NAMES), encode([*NAMES, "brass hammer"])


@pytest.mark.usefixtures("processes")
def test_items_get_the_vectors_of_their_texts(encoded, text_model):
    from rec_ray.retrieval.encoders.text import TextEncoder

    _, (text, rows), _ = encoded
    assert text.features.item["text_vector"].length == 384
    assert rows["i3"] is None and rows["i4"] is None
    for item, name in (("i0", "red cup"), ("i2", "red cup"), ("i1", "blue cup"), ("i5", "steel hammer")):
        assert np.allclose(rows[item], TextEncoder(text_model).encode([name])[0], atol=1e-4)


@pytest.mark.usefixtures("processes")
def test_each_text_is_encoded_once(encoded):
    storage, (first, before), (second, after) = encoded
    assert (first.encoded, first.kept) == (3, 0), "two items share a text, two have none"
    assert (second.encoded, second.kept) == (1, 3)
    assert {item: after[item] for item in before} == before
    assert np.dot(after["i6"], after["i5"]) > np.dot(after["i6"], after["i0"])
    assert len(storage.list("text_vectors")) == 2


@pytest.mark.usefixtures("processes")
def test_without_a_text_there_is_nothing_to_encode(local_ray, tmp_path):
    from rec_ray.data.item_texts import encode_item_text
    from rec_ray.storage.object_store import open_storage

    items = local_ray.data.from_arrow(pa.table({"item_id": ["a"], "price": [1.0]}))
    tables = FeatureTables(items, items, SplitTimes(THEN, THEN, THEN), RowCounts(0, 0))
    features = FeatureSettings(item={"price": FeatureDeclaration("numeric")})
    with pytest.raises(SchemaError, match="no feature of items is declared as text"):
        encode_item_text(tables, features, "transformers:any", open_storage(str(tmp_path)))


@pytest.mark.usefixtures("processes")
def test_the_catalogue_has_the_vectors_as_of_both_instants(tiny_data, tmp_path, text_model):
    """From Feast to the encoded catalogue: the text is one vector there, and no longer tokens."""
    from rec_ray.data.item_texts import encode_item_text
    from rec_ray.data.load_features import load_features
    from rec_ray.data.training_data import prepare_training_data
    from rec_ray.retrieval.encoders.text import TextEncoder
    from rec_ray.runs.context import open_feature_store
    from rec_ray.storage.object_store import open_storage

    settings = tiny_data.settings
    features = settings.features.model_copy(
        update={"item": {"name": FeatureDeclaration("text"), "category": FeatureDeclaration("categorical")}}
    )
    tables = load_features(
        open_feature_store(settings), settings.feast, features, settings.evaluation, tiny_data.data.split_times.as_of
    )
    storage = open_storage(str(tmp_path))
    text = encode_item_text(tables, features, f"transformers:{text_model}", storage)
    data = prepare_training_data(text.tables, text.features, "time", storage, "data")
    shape = data.preprocessor.items.shape
    assert (shape.vector, shape.fields) == (384, 1)
    (text_of_i7,) = TextEncoder(text_model).encode(["product 7 of group 3"])
    for folder in (data.catalogue, data.catalogue_now):
        rows = {row["item_id"]: row for row in pq.read_table(folder).to_pylist()}
        assert len(rows) == 62
        # Vectors are centred: differences of items keep their direction, and no vector is that of the text itself.
        assert not np.allclose(rows["i7"]["item_vector"], text_of_i7, atol=1e-2)
        (text_of_i3,) = TextEncoder(text_model).encode(["product 3 of group 3"])
        apart = np.subtract(rows["i7"]["item_vector"], rows["i3"]["item_vector"])
        wanted = text_of_i7 - text_of_i3
        cosine = apart @ wanted / (np.linalg.norm(apart) * np.linalg.norm(wanted))
        assert cosine > 0.9999
