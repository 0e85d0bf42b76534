"""A small model of the kind of CLIP: its vectors are its own features at unit length, whatever is beside an image."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rec_ray.errors import ConfigError, DataError
from rec_ray.retrieval.encoders.image import ImageEncoder, decode_image, image_dimensions


def image(colour, size=(16, 16)):
    return decode_image(png(colour, size))


def png(colour, size=(16, 16)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def encoder(image_model):
    return ImageEncoder(image_model)


def test_vectors_are_the_features_of_the_model_at_unit_length(encoder, image_model):
    vectors = encoder.encode_images([image("red"), image("blue")])
    assert vectors.shape == (2, encoder.dimensions) == (2, image_dimensions(image_model)) == (2, 12)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    # A red point is (255, 0, 0): scaled to 1 and 0, less 0.5, divided by 0.25.
    red = torch.tensor([2.0, -2.0, -2.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    with torch.inference_mode():
        features = encoder.model.get_image_features(pixel_values=red)
    features = getattr(features, "pooler_output", features)[0].numpy()
    assert np.allclose(vectors[0], features / np.linalg.norm(features), atol=1e-5)


def test_an_image_has_the_same_vector_alone_and_among_others(encoder):
    images = [image("red"), image("blue", (40, 20)), image("green"), image("red")] * 10
    together = encoder.encode_images(images)
    assert np.allclose(together[::-1], encoder.encode_images(images[::-1]), atol=1e-5)
    assert np.allclose(together[0], together[3], atol=1e-6)
    assert not np.allclose(together[0], together[1], atol=1e-2)
    assert encoder.encode_images([]).shape == (0, 12)


def test_texts_have_vectors_in_the_same_space(encoder):
    vectors = encoder.encode(["red cup", "steel hammer " * 30, "red cup"])
    assert vectors.shape == (3, 12)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.allclose(vectors[0], encoder.encode(["red cup"])[0], atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-6)


def test_images_of_any_mode_are_read_and_others_say_why(monkeypatch):
    file = io.BytesIO()
    Image.new("P", (3, 2)).save(file, "GIF")
    assert (decode_image(file.getvalue()).mode, decode_image(file.getvalue()).size) == ("RGB", (3, 2))
    with pytest.raises(DataError, match="not an image"):
        decode_image(b"<html>not found</html>")
    with pytest.raises(DataError, match="damaged"):
        decode_image(png("red", (300, 300))[:-60])
    monkeypatch.setattr("rec_ray.retrieval.encoders.image.MOST_PIXELS", 99)
    with pytest.raises(DataError, match="10 x 10 pixels; at most 99"):
        decode_image(png("red", (10, 10)))


def test_a_model_that_is_not_there_or_of_another_kind_is_named(tmp_path, text_model):
    with pytest.raises(ConfigError, match="has no image model"):
        ImageEncoder(str(tmp_path))
    with pytest.raises(ConfigError, match="has no image model"):
        image_dimensions(str(tmp_path))
    with pytest.raises(ConfigError, match="no common space of images and texts"):
        image_dimensions(text_model)
    with pytest.raises(ConfigError, match="no image model"):
        ImageEncoder(text_model)


def test_without_transformers_the_extra_is_named(monkeypatch, image_model):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"rec_ray\[text\]"):
        ImageEncoder(image_model)
    with pytest.raises(ConfigError, match=r"rec_ray\[text\]"):
        image_dimensions(image_model)
