"""Settings of the two towers.

Input: plain values. Output: a frozen section. Section `train` configures training.
"""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
)

from rec_ray.config.section import Fraction, Positive, Section


class ModelSettings(Section):
    """The two towers."""

    embedding_size: Positive = Field(64, description="Dimensions of user and item vectors.")
    history: Literal["auto", "none", "mean", "transformer"] = Field(
        "auto",
        description="Encoder of past events. auto: on small data, trains mean and transformer and keeps the better by "
        "validation; on larger data, transformer if the order of events is predictive, else mean.",
    )
    history_length: Positive = Field(50, description="Newest events of a user to read.")
    layers: int = Field(2, ge=1, le=64, description="Layers of the history transformer.")
    heads: Positive = Field(2, description="Attention heads of a layer.")
    norm: Literal["pre", "post"] = Field("post", description="Position of the normalisation in a transformer layer.")
    dropout: Fraction = Field(0.2, description="Dropout in both towers.")
    id_dropout: Fraction = Field(0.1, description="Share of item ids hidden in training, so that features are learned.")
    history_rows: bool = Field(
        True, description="Separate item embeddings for history and scoring: successive items need not be similar."
    )
    time_gaps: bool = Field(False, description="Read the time between events; turn off if timestamps are coarse.")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="Similarity of a user and an item vector.")
