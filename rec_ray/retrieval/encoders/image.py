"""Images and texts into one space, by a pretrained model of two towers such as CLIP: vectors of unit length.

Images, decoded here, or strings come in and a matrix goes out (Radford et al. 2021). It needs the packages
`transformers` and `pillow`, loads weights as safetensors only, and knows nothing of items, addresses, caches or
processes.
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
"""An image of more is not decoded: it would take a hundred megabytes, whatever the size of its file."""
NEEDED = "an image encoder needs transformers and pillow: {}; install them with `pip install 'rec_ray[text]'`"


class ImageEncoder:
    """A model for images and texts, with what prepares both for it."""

    def __init__(self, name: str) -> None:
        """name: of a model that transformers knows or finds in its cache, or a folder with one.

        Raises:
            ConfigError: a package is missing, or there is no such model, or one that knows no images.
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
            raise ConfigError(
                f"transformers has no model {name!r} for images, with weights as safetensors: {error}"
            ) from error
        if not hasattr(self.model, "get_image_features"):
            raise ConfigError(f"the model {name!r} encodes no images; take one such as openai/clip-vit-base-patch32")
        self.name = name

    @property
    def dimensions(self) -> int:
        """Numbers of a vector."""
        return int(self.model.config.projection_dim)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """images: n images as `decode_image` gives them -> [n, dimensions] float32, each of unit length."""
        found = [
            self.model.get_image_features(**self.processor(list(images[start : start + BATCH]), return_tensors="pt"))
            for start in range(0, len(images), BATCH)
        ]
        return _unit(found, self.dimensions)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """texts: n strings -> [n, dimensions] float32 in the space of the images, each of unit length.

        Raises:
            ConfigError: the model has no tower for texts.
        """
        if self.tokenizer is None:
            raise ConfigError(f"the model {self.name!r} encodes no texts; leave the text fields of its views empty")
        longest = int(self.model.config.text_config.max_position_embeddings)
        found = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            found.append(self.model.get_text_features(**tokens))
        return _unit(found, self.dimensions)


def image_dimensions(name: str) -> int:
    """Return the numbers of a vector of a model, whose weights are not read.

    Raises:
        ConfigError: transformers is not installed, or has no such model, or it says no `projection_dim`.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ConfigError(NEEDED.format(error)) from error
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"transformers has no model {name!r} for images: {error}") from error
    found = getattr(config, "projection_dim", None)
    if not found:
        raise ConfigError(
            f"the model {name!r} has no space of images and texts (no projection_dim); one of the kind of "
            "openai/clip-vit-base-patch32 has"
        )
    return int(found)


def decode_image(data: bytes) -> Any:
    """Return the image of a file in RGB.

    Raises:
        DataError: it is no image, it is damaged, or it has more than `MOST_PIXELS`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{image.width} x {image.height} points; at most {MOST_PIXELS:,} are decoded")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise DataError("no image of a kind that Pillow reads") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"a damaged image: {error}") from None


def _has_texts(model: Any) -> bool:
    return hasattr(model, "get_text_features")


def _unit(found: Sequence[Any], dimensions: int) -> NDArray[np.float32]:
    """Return features as a matrix of rows of unit length; transformers 5 wraps what 4 gave bare."""
    rows = [features if isinstance(features, torch.Tensor) else features.pooler_output for features in found]
    if not rows:
        return np.zeros((0, dimensions), np.float32)
    return F.normalize(torch.cat(rows).float(), dim=-1).numpy()
