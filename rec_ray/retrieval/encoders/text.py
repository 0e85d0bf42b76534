"""Texts to vectors by a pretrained language model: the mean of its last hidden states or the first one, of unit length.

Input: strings. Output: a matrix. The pooling is the one that the model declares (Sentence-BERT, Reimers and Gurevych
2019). The encoder needs the package `transformers` and loads weights as safetensors only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rec_ray.errors import ConfigError, list_names

LONGEST = 256
"""Tokens of a text that are read; the rest is cut off."""
BATCH = 64
POOLING = "1_Pooling/config.json"
"""Model file that declares how hidden states become one vector; without it the mean is used."""
MEAN, FIRST = "pooling_mode_mean_tokens", "pooling_mode_cls_token"
NEEDED = "a text encoder needs transformers: {}; install it with `pip install 'rec_ray[text]'`"


class TextEncoder:
    """Language model with its tokenizer."""

    def __init__(self, name: str) -> None:
        """Load a model. name: of a model in the Hugging Face hub or its local cache, or a folder with a model.

        Raises:
            ConfigError: transformers is not installed, or has no such model.
        """
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise ConfigError(NEEDED.format(error)) from error
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            self.model: Any = AutoModel.from_pretrained(name, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"transformers has no text model {name!r} with safetensors weights: {error}") from error
        self.pooling = declared_pooling(name)

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self.model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a vector of each text: n strings -> [n, dimensions] float32, each of unit length.

        Texts are encoded in the order of their length, so that batches contain little padding.
        """
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            tokens = self.tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            hidden = self.model(**tokens).last_hidden_state
            counted = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * counted).sum(1) / counted.sum(1).clamp(min=1)
            vectors[places] = F.normalize(hidden[:, 0] if self.pooling == FIRST else mean, dim=-1).numpy()
        return vectors


def text_dimensions(name: str) -> int:
    """Return the length of a model's vectors without reading its weights.

    Raises:
        ConfigError: transformers is not installed, has no such model, or the model declares no `hidden_size`.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ConfigError(NEEDED.format(error)) from error
    try:
        return int(AutoConfig.from_pretrained(name).hidden_size)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"transformers has no text model {name!r}: {error}") from error


def declared_pooling(name: str) -> str:
    """Return the pooling that a model declares in its file `POOLING`: `MEAN` or `FIRST`.

    Raises:
        ConfigError: the model declares another pooling.
    """
    from transformers.utils import cached_file

    try:
        with Path(cached_file(name, POOLING)).open(encoding="utf-8") as file:
            declared = json.load(file)
    except (OSError, ValueError):
        return MEAN
    modes = [mode for mode, chosen in declared.items() if mode.startswith("pooling_mode_") and chosen is True]
    if isinstance(declared.get("pooling_mode"), str):
        modes = [{"mean": MEAN, "cls": FIRST}.get(declared["pooling_mode"], declared["pooling_mode"])]
    if modes not in ([MEAN], [FIRST]):
        raise ConfigError(
            f"the model {name!r} declares the pooling {list_names(modes)}; supported is one of {MEAN} and {FIRST}"
        )
    return modes[0]


def fingerprint(name: str, pooling: str = MEAN) -> str:
    """Return a cache key of a model's vectors: of a folder by the content of its files, else by the model's name."""
    digest = hashlib.sha256(b"" if pooling == MEAN else pooling.encode())
    folder = Path(name)
    if not folder.is_dir():
        digest.update(name.encode())
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path.suffix in (".json", ".txt", ".model", ".safetensors"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
