"""Images and texts to vectors of one space by a pretrained model with two towers such as CLIP: vectors of unit length.

Input: images, decoded by `decode_image`, or strings. Output: a matrix (Radford et al. 2021). The encoder needs the
packages `transformers` and `pillow` and loads weights as safetensors only.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rec_ray.errors import ConfigError, DataError

BATCH = 32
MOST_PIXELS = 25_000_000
"""Largest number of pixels of an image that is decoded; a small file can hold an image that fills the memory."""
NEEDED = "an image encoder needs transformers and pillow: {}; install them with `pip install 'rec_ray[text]'`"


class ImageEncoder:
    """Model for images and texts, with the preprocessing of both."""

    def __init__(self, name: str) -> None:
        """Load a model. name: of a model in the Hugging Face hub or its local cache, or a folder with a model.

        Raises:
            ConfigError: a package is missing, or there is no such model, or the model encodes no images.
        """
        try:
            import PIL.Image  # noqa: F401
            from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
        except ImportError as error:
            raise ConfigError(NEEDED.format(error)) from error
        try:
            self.model: Any = AutoModel.from_pretrained(name, use_safetensors=True).eval()
            self.processor: Any = AutoImageProcessor.from_pretrained(name, backend="pil")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name) if _has_texts(self.model) else None
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"transformers has no image model {name!r} with safetensors weights: {error}") from error
        if not hasattr(self.model, "get_image_features"):
            raise ConfigError(
                f"the model {name!r} encodes no images; take a model such as openai/clip-vit-base-patch32"
            )
        self.name = name

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self.model.config.projection_dim)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Return a vector of each image: n images of `decode_image` -> [n, dimensions] float32, each of unit length."""
        features = [
            self.model.get_image_features(**self.processor(list(images[start : start + BATCH]), return_tensors="pt"))
            for start in range(0, len(images), BATCH)
        ]
        return _unit_rows(features, self.dimensions)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a vector of each text: n strings -> [n, dimensions] float32 in the space of the images, each of unit
        length.

        Raises:
            ConfigError: the model has no tower for texts.
        """
        if self.tokenizer is None:
            raise ConfigError(f"the model {self.name!r} encodes no texts; leave the text fields of its views empty")
        longest = int(self.model.config.text_config.max_position_embeddings)
        features = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            features.append(self.model.get_text_features(**tokens))
        return _unit_rows(features, self.dimensions)


def image_dimensions(name: str) -> int:
    """Return the length of a model's vectors without reading its weights.

    Raises:
        ConfigError: transformers is not installed, has no such model, or the model declares no `projection_dim`.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ConfigError(NEEDED.format(error)) from error
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"transformers has no image model {name!r}: {error}") from error
    dimensions = getattr(config, "projection_dim", None)
    if not dimensions:
        raise ConfigError(
            f"the model {name!r} has no common space of images and texts (no projection_dim); take a model such as "
            "openai/clip-vit-base-patch32"
        )
    return int(dimensions)


def decode_image(data: bytes) -> Any:
    """Return the image of a file in RGB.

    Raises:
        DataError: the file is no image, is damaged, or has more than `MOST_PIXELS`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are decoded")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise DataError("not an image format that Pillow reads") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"damaged image: {error}") from None


def _has_texts(model: Any) -> bool:
    return hasattr(model, "get_text_features")


def _unit_rows(outputs: Sequence[Any], dimensions: int) -> NDArray[np.float32]:
    """Return features as a matrix of rows of unit length; transformers 5 wraps the tensors that version 4 returned."""
    rows = [output if isinstance(output, torch.Tensor) else output.pooler_output for output in outputs]
    if not rows:
        return np.zeros((0, dimensions), np.float32)
    return F.normalize(torch.cat(rows).float(), dim=-1).numpy()
