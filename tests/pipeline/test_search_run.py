"""The whole line on views that are searched: what stands in the online store is what the models say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from stored_versions import search_view

from rec_ray import pipeline
from rec_ray.config import Settings
from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError, StorageError
from rec_ray.runs.context import open_feature_store

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

TEXTS, IMAGES = "item_textual_features_embed", "item_clip_features_embed"
FIELDS = {TEXTS: "about_product_embedding", IMAGES: "clip_latent_space_embedding"}


@pytest.fixture
def settings(
    tmp_path: Path,
    make_project: Callable[..., Path],
    tiny_tables: dict[str, pa.Table],
    text_model: str,
    image_model: str,
) -> Settings:
    """A small project whose items say and show something, and have no view yet that is searched."""
    items = tiny_tables["items"]
    numbers = range(items.num_rows)
    about = [f"{('red', 'blue')[n % 2]} cup" if n else None for n in numbers]
    pictures = [f"pictures/{n % 2}.png" if n > 1 else None if n else "pictures/none.png" for n in numbers]
    items = items.append_column("about_product", pa.array(about)).append_column("img_link", pa.array(pictures))
    folder = make_project(
        tmp_path,
        **{**tiny_tables, "items": items},
        settings={
            "model": {"history": "mean", "embedding_size": 16},
            "train": {"epochs": 1, "refit": "off"},
            "candidates": {"k": 5},
            "search": {"text_encoder": f"transformers:{text_model}", "image_encoder": f"transformers:{image_model}"},
        },
    )
    settings = load_settings(folder / "rec_ray.yaml", environ={})
    (Path(settings.feast.repo) / "pictures").mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (16, 16), colour).save(Path(settings.feast.repo) / "pictures" / f"{number}.png")
    return settings


def test_items_are_found_by_what_they_say_and_show(
    settings: Settings, text_model: str, image_model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from rec_ray.retrieval.encoders.image import ImageEncoder, decode_image
    from rec_ray.retrieval.encoders.text import TextEncoder

    with pytest.raises(ConfigError, match=f"search.text_encoder is set, but no .*'{TEXTS}'"):
        pipeline.run_pipeline(settings, run_id="early")
    store = open_feature_store(settings)
    store.apply([search_view(tmp_path, source, [name], stamped=False) for source, name in FIELDS.items()])

    def fail(*_: Any) -> Any:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "encode_search", fail)
        with pytest.raises(StorageError, match="disk is full"):
            pipeline.run_pipeline(settings, run_id="late")
    with monkeypatch.context() as patched:
        # What the first attempt did is not done again.
        patched.setattr(pipeline, "recommend_items", fail)
        report = pipeline.run_pipeline(settings, run_id="late")

    assert report.seconds["search_vectors"] > 0
    rows = {name: report.counts[f"rows pushed to {name}"] for name in FIELDS}
    assert rows == {TEXTS: 59, IMAGES: 59}, "one item says nothing and shows what cannot be read"
    assert report.counts["images that cannot be read"] == 1
    assert report.counts["texts and images encoded"] == 2 + 2 + 2
    text, image = TextEncoder(text_model), ImageEncoder(image_model)
    said, named = text.encode(["blue cup"])[0], image.encode(["red cup", "blue cup"])
    pictures = [Path(settings.feast.repo, "pictures", f"{number}.png").read_bytes() for number in (0, 1)]
    shown = image.encode_images([decode_image(data) for data in pictures])
    mixed = 2 * shown + named
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)

    def stored(source: str, item: str) -> Any:
        name = FIELDS[source]
        return store.get_online_features([f"{source}:{name}"], [{"item_id": item}]).to_dict()[name][0]

    assert np.allclose(stored(TEXTS, "i3"), said, atol=1e-4)
    assert np.allclose(stored(IMAGES, "i3"), mixed[1], atol=1e-4)
    assert np.allclose(stored(IMAGES, "i2"), mixed[0], atol=1e-4)
    assert np.allclose(stored(IMAGES, "i1"), named[1], atol=1e-4), "no image: its text in the same space"
    assert stored(TEXTS, "i0") is None and stored(IMAGES, "i0") is None
