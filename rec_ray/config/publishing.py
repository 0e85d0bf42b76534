"""Settings of publishing: push sources, batches and the publishing lock.

Plain values go in and a frozen section comes out. It does not describe how candidates are computed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rec_ray.config.section import Positive, Section


class PublishSettings(Section):
    """How candidates reach the Feast online store."""

    item_push_source: str = Field("item_embed_push_source", description="Push source of item vectors.")
    user_push_source: str = Field("user_embed_push_source", description="Push source of user vectors.")
    recommendation_push_source: str = Field("user_items_push_source", description="Push source of the lists.")
    similar_push_source: str | None = Field(
        None, description="Push source of the lists of similar items, such as item_items_push_source; null: none."
    )
    batch_rows: Positive = Field(1000, description="Rows of one push.")
    push_mode: Literal["online", "online_and_offline"] = Field(
        "online", description="Where a push goes; online_and_offline also appends to the files or tables behind a view."
    )
    lock_seconds: Positive = Field(900, description="A publisher that is silent for so long has lost its lock.")
    wait_seconds: int = Field(
        0, ge=0, description="How long to wait while another run publishes, before leaving with exit code 7."
    )
