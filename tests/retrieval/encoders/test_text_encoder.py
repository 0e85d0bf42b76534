"""A real language model, from a wheel and without network: its vectors are those of its makers' recipe."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from rec_ray.errors import ConfigError
from rec_ray.retrieval.encoders.text import FIRST, MEAN, TextEncoder, declared_pooling, fingerprint, text_dimensions

TEXTS = ["a red ceramic cup", "a mug for coffee, red", "", "the annual report of the central bank"]


@pytest.fixture(scope="module")
def encoder(text_model):
    return TextEncoder(text_model)


def test_vectors_have_unit_length_and_near_texts_are_near(encoder):
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (4, encoder.dimensions) == (4, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.6
    assert similarity[0, 3] < 0.3


def test_a_text_has_the_same_vector_alone_and_among_longer_ones(encoder):
    """Padding must not count: the mean is over the tokens of the text itself."""
    together = encoder.encode([*TEXTS, "word " * 300])
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert np.allclose(together[:4], alone, atol=1e-4)
    tokens = encoder.tokenizer([TEXTS[0]], return_tensors="pt")
    with torch.inference_mode():
        hidden = encoder.model(**tokens).last_hidden_state[0].mean(0)
    assert np.allclose(alone[0], (hidden / hidden.norm()).numpy(), atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


def test_the_makers_of_a_model_say_what_its_vector_is(tmp_path, encoder, text_model):
    """As of those of the family of BGE: the hidden state of the first token, not the mean."""
    folder = tmp_path / "first"
    shutil.copytree(text_model, folder)
    declared = {MEAN: False, FIRST: True, "word_embedding_dimension": 384}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(declared))
    first = TextEncoder(str(folder)).encode([TEXTS[0]])[0]
    tokens = encoder.tokenizer([TEXTS[0]], return_tensors="pt")
    with torch.inference_mode():
        hidden = encoder.model(**tokens).last_hidden_state[0, 0]
    assert np.allclose(first, (hidden / hidden.norm()).numpy(), atol=1e-5)
    assert encoder.pooling == MEAN
    assert fingerprint(text_model, FIRST) != fingerprint(text_model)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert declared_pooling(str(folder)) == FIRST
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({MEAN: False, "pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="declares the pooling 'pooling_mode_max_tokens'"):
        declared_pooling(str(folder))
    shutil.rmtree(folder / "1_Pooling")
    assert declared_pooling(str(folder)) == MEAN


def test_the_length_of_a_vector_is_known_without_weights(tmp_path, text_model):
    assert text_dimensions(text_model) == 384
    with pytest.raises(ConfigError, match="no text model"):
        text_dimensions(str(tmp_path))


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no text model"):
        TextEncoder(str(tmp_path))


def test_without_transformers_the_extra_is_named(monkeypatch, text_model):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"rec_ray\[text\]"):
        TextEncoder(text_model)


def test_a_folder_is_known_by_its_content_and_a_model_by_its_name(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("one", "two"):
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    assert fingerprint(str(tmp_path / "one")) == fingerprint(str(tmp_path / "two"))
    (tmp_path / "two" / "model.safetensors").write_bytes(b"other weights")
    assert fingerprint(str(tmp_path / "one")) != fingerprint(str(tmp_path / "two"))
    assert fingerprint("some/model") != fingerprint("some/other-model")
