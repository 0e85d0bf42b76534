"""Vectors of what items say and show: each text and image once, kept by content, and the mean of both by weight."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rec_ray.candidate_store.manifest import SearchView, read_manifest, read_parts
from rec_ray.config import SearchSettings
from rec_ray.errors import ConfigError, DataError, SchemaError
from rec_ray.search_views.vectors import make_search_vectors, mixed, search_dimensions
from rec_ray.storage.object_store import Storage, open_storage
from rec_ray.storage.vector_cache import VECTORS

ITEMS = {
    "item_id": ["a", "b", "c", "d", "e", "f"],
    "raw_name": ["red cup", "blue cup", "red cup", None, None, " "],
    "raw_about": ["steel", None, "steel", "hammer", None, None],
    "raw_picture": ["red.png", "same.png", "red.png", "missing.png?key=1", "note.txt", None],
}


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


@dataclass
class Shop:
    """A catalogue in a store with candidates that hold nothing yet, and images in a folder."""

    folder: Path
    settings: SearchSettings
    storage: Storage = field(init=False)

    def __post_init__(self) -> None:
        self.storage = open_storage(str(self.folder / "store"))
        self.storage.write_bytes(
            "c/manifest.json", json.dumps({"version": "1", "parts": {"recommendations": []}}).encode()
        )
        self.draw("red.png", "red")
        self.draw("same.png", "red")
        (self.folder / "note.txt").write_text("no image")
        self.write(ITEMS)

    def draw(self, name: str, colour: str) -> None:
        Image.new("RGB", (20, 16), colour).save(self.folder / name, "PNG")

    def write(self, items: dict[str, list[Any]]) -> None:
        (self.folder / "store" / "catalogue").mkdir(exist_ok=True)
        table = pa.table(items, schema=pa.schema([(name, pa.string()) for name in items]))
        pq.write_table(table, self.folder / "store" / "catalogue" / "part.parquet")

    def make(self, settings: SearchSettings | None = None) -> Any:
        data: Any = SimpleNamespace(catalogue_now=self.storage.path("catalogue"))
        where = {"version": "1", "prefix": "c", "repo": str(self.folder)}
        return make_search_vectors(data, settings or self.settings, self.storage, **where)

    def rows(self, source: str) -> dict[str, dict[str, Any]]:
        table = read_parts(self.storage, "c", read_manifest(self.storage, "c"), f"search/{source}")
        return {row.pop("item_id"): row for row in table.to_pylist()}


@pytest.fixture
def shop(local_ray: Any, tmp_path: Path, text_model: str, image_model: str) -> Shop:
    settings = {
        "text_encoder": f"transformers:{text_model}",
        "image_encoder": f"transformers:{image_model}",
        "text_views": {"texts": {"name_vector": ["name"], "all_vector": ["name", "about"]}},
        "image_views": {"images": {"vector": {"image": "picture", "text": ["name"]}}},
    }
    return Shop(tmp_path, SearchSettings.model_validate(settings))


@pytest.mark.usefixtures("processes")
def test_every_item_gets_the_vectors_of_its_texts_and_image(
    shop: Shop, text_model: str, image_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    from rec_ray.retrieval.encoders.image import ImageEncoder, decode_image
    from rec_ray.retrieval.encoders.text import TextEncoder

    made = shop.make()

    texts, images = TextEncoder(text_model), ImageEncoder(image_model)
    said = {text: texts.encode([text])[0] for text in ("red cup", "blue cup", "hammer", "red cup\nsteel")}
    named = {text: images.encode([text])[0] for text in ("red cup", "blue cup")}
    red = images.encode_images([decode_image((shop.folder / "red.png").read_bytes())])[0]
    assert made.rows == {"texts": 4, "images": 3}
    # Texts for the first model: two names, then three more with what is said about them, of which one is a name.
    assert made.encoded == 2 + 2 + 2 + 1, "red.png and same.png are one image"
    assert made.unreadable == 2
    rows = shop.rows("texts")
    assert list(rows) == ["a", "b", "c", "d"]
    for item, name, every in (("a", "red cup", "red cup\nsteel"), ("b", "blue cup", "blue cup"), ("d", None, "hammer")):
        found = rows[item]["name_vector"]
        assert found is None if name is None else np.allclose(found, said[name], atol=1e-4)
        assert np.allclose(rows[item]["all_vector"], said[every], atol=1e-4)
    rows = shop.rows("images")
    assert np.allclose(rows["a"]["vector"], unit(2 * red + named["red cup"]), atol=1e-4)
    assert np.allclose(rows["b"]["vector"], unit(2 * red + named["blue cup"]), atol=1e-4)
    assert list(rows) == ["a", "b", "c"], "d has neither an image nor a name, e an image that is none"
    assert "2 of 3 images cannot be read" in caplog.text
    assert "missing.png?key=1 (no such file); note.txt (not an image format that Pillow reads)" in caplog.text
    manifest = read_manifest(shop.storage, "c")
    assert list(manifest.parts) == ["recommendations", "search/texts", "search/images"]
    assert manifest.search["texts"].vectors == {"name_vector": 384, "all_vector": 384}
    assert manifest.search["images"] == SearchView({"vector": 12}, shop.settings.image_encoder)

    # Once more, with one image changed and one item more: only what is new is encoded.
    again = shop.make()
    assert (again.encoded, again.kept) == (0, made.encoded + made.kept)
    shop.draw("same.png", "blue")
    shop.write({name: [*values, {"item_id": "g", "raw_name": "red cup"}.get(name)] for name, values in ITEMS.items()})
    only_images = shop.settings.model_copy(update={"text_encoder": None})
    third = shop.make(only_images)
    assert (third.rows, third.encoded) == ({"images": 4}, 1)
    rows = shop.rows("images")
    assert np.allclose(rows["g"]["vector"], named["red cup"], atol=1e-4), "a text stands in for an image"
    assert not np.allclose(rows["b"]["vector"], unit(2 * red + named["blue cup"]), atol=1e-3)
    manifest = read_manifest(shop.storage, "c")
    assert list(manifest.parts) == ["recommendations", "search/images"]


@pytest.mark.usefixtures("processes")
def test_a_field_that_was_not_read_and_candidates_that_are_missing(shop: Shop) -> None:
    other = shop.settings.model_copy(update={"text_views": {"texts": {"vector": ["title"]}}, "image_encoder": None})
    with pytest.raises(SchemaError, match="lack 'title'"):
        shop.make(other)
    shop.storage.delete_prefix("c")
    with pytest.raises(DataError, match="no complete candidates"):
        shop.make()


def test_the_lengths_of_vectors_are_known_before_anything_is_encoded(
    tmp_path: Path, text_model: str, image_model: str
) -> None:
    assert search_dimensions(SearchSettings()) == {}
    settings = SearchSettings(text_encoder=f"transformers:{text_model}", image_encoder=f"transformers:{image_model}")
    assert search_dimensions(settings) == {
        "item_textual_features_embed": {"about_product_embedding": 384},
        "item_clip_features_embed": {"clip_latent_space_embedding": 12},
    }
    with pytest.raises(ConfigError, match="has no text model"):
        search_dimensions(SearchSettings(text_encoder=f"transformers:{tmp_path}"))


def test_a_mean_is_weighted_and_of_unit_length() -> None:
    images = pa.array([[1.0, 0.0], [1.0, 0.0], None, None], VECTORS)
    texts = pa.array([[0.0, 1.0], None, [0.0, 1.0], None], VECTORS)
    found = mixed(images, texts, 2.0).to_pylist()
    assert found[0] == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    assert found[1:] == [[1, 0], [0, 1], None]
    nothing = pa.nulls(2, VECTORS)
    assert mixed(nothing, nothing, 2.0).to_pylist() == [None, None]
