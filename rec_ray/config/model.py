"""Settings of the two towers.

Plain values go in and a frozen section comes out. It does not describe how the towers learn.
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
        description="How past events are read; auto tries mean and transformer on small data and keeps the better by "
        "validation, on larger data takes transformer where the order of events predicts and mean where it does not.",
    )
    history_length: Positive = Field(50, description="Events of a user that are read at most, the newest.")
    layers: int = Field(2, ge=1, le=64, description="Layers of the history transformer.")
    heads: Positive = Field(2, description="Attention heads of a layer.")
    norm: Literal["pre", "post"] = Field("post", description="Where a transformer layer normalises.")
    dropout: Fraction = Field(0.2, description="Dropout in both towers.")
    id_dropout: Fraction = Field(0.1, description="Share of item ids hidden in training, so that features carry.")
    history_rows: bool = Field(
        True, description="Items have a second row for being read as history: what follows need not resemble."
    )
    time_gaps: bool = Field(False, description="Read the time between events; off where timestamps are coarse.")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="How a user and an item are compared.")
