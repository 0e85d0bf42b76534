"""Settings of publishing: push sources, batches and the publishing lock.

Input: plain values. Output: a frozen section.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rec_ray.config.section import Fraction, Positive, Section


class PublishSettings(Section):
    """Publishing of candidates to the Feast online store."""

    item_push_source: str = Field("item_embed_push_source", description="Push source of item vectors.")
    user_push_source: str = Field("user_embed_push_source", description="Push source of user vectors.")
    recommendation_push_source: str = Field(
        "user_items_push_source", description="Push source of the recommendation lists."
    )
    similar_push_source: str | None = Field(
        None, description="Push source of similar items, such as item_items_push_source; null: not pushed."
    )
    materialize: Literal["auto"] | list[str] = Field(
        default_factory=list,
        description="Views with features of users and items to materialise before each push, incrementally; auto: all "
        "that are online and not fed by a push source; []: none, as another job does it.",
    )
    legacy_user_encoder: bool = Field(
        False,
        description="Store user-encoder-{version}.pth in the bucket user-encoder, which the backend of the replaced "
        "system loads at each start; new users get better lists with search.text_encoder.",
    )
    batch_rows: Positive = Field(1000, description="Rows per push.")
    push_mode: Literal["online", "online_and_offline"] = Field(
        "online", description="Target of a push; online_and_offline also appends to the offline source of the view."
    )
    lock_seconds: Positive = Field(
        900, description="Seconds after which the lock of a publisher expires unless it is renewed."
    )
    wait_seconds: int = Field(
        0, ge=0, description="Seconds to wait for the lock of another publisher before exit code 7."
    )
    list_floor: Fraction = Field(
        0.5, description="Minimum number of lists as a share of the live version's; fewer cannot replace it. 0: any."
    )
    keep_versions: int = Field(
        10, ge=0, description="Newest versions whose files stay after a publication, and at least after prune; 0: all."
    )
