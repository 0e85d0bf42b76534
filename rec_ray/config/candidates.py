"""Settings of the lists of recommendations: candidates, filters, how they reach Feast.

Plain values go in and frozen sections come out. They know no model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rec_ray.config.section import Fraction, Positive, Section


class UserRule(Section):
    """A rule between an item and a user: `item: age_limit, must_be: at_most, user: age`."""

    item: str = Field(description="Field of an item.")
    must_be: Literal["equal", "at_least", "at_most", "contains", "contained_in"] = Field(
        description="What the item's value must be beside the user's; an item without a value is for everyone."
    )
    user: str = Field(description="Field of a user.")
    unknown_user: Literal["refuse", "allow"] = Field(
        "refuse", description="Whether a user without a value gets the items that have one."
    )


class FilterSettings(Section):
    """What may be recommended to whom; acts before a list is cut to k. A missing value restricts nothing."""

    seen_types: list[str] = Field(default_factory=list, description="Types of events that count as seen; empty: all.")
    seen_days: float | None = Field(None, gt=0, description="Events count as seen for so many days; null: for ever.")
    available: str | None = Field(None, description="Boolean field of an item: one that is false is left out.")
    available_from: str | None = Field(None, description="Time field of an item: left out before it.")
    available_until: str | None = Field(None, description="Time field of an item: left out from it on.")
    category: str | None = Field(None, description="Field of an item that the next five are about.")
    separator: str | None = Field(None, description="Parts its paths; null: as the feature is declared.")
    allowed_categories: list[str] = Field(default_factory=list, description="Only these; a path means all below it.")
    blocked_categories: list[str] = Field(default_factory=list, description="None of these, nor what is below them.")
    most_per_category: Positive | None = Field(None, description="Items of one category in a list at most.")
    category_level: Positive | None = Field(
        None, description="Parts of a path that make the category of most_per_category; null: the whole path."
    )
    rules: list[UserRule] = Field(
        default_factory=list, description="Such as {item: age_limit, must_be: at_most, user: age}."
    )
    always_include: list[str] = Field(
        default_factory=list, description="Items in every list, unless seen, unavailable or against a rule."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> FilterSettings:
        about = ("separator", "allowed_categories", "blocked_categories", "most_per_category", "category_level")
        named = [name for name in about if getattr(self, name)]
        if named and self.category is None:
            raise ValueError(f"{named[0]} needs candidates.filters.category, the item field with the categories")
        if self.category_level is not None and self.most_per_category is None:
            raise ValueError("category_level says nothing without most_per_category")
        return self

    @property
    def item_fields(self) -> dict[str, str]:
        """The item fields that are read -> the setting that names each."""
        named = {name: getattr(self, name) for name in ("available", "available_from", "available_until", "category")}
        return {field: name for name, field in named.items() if field} | {rule.item: "rules" for rule in self.rules}

    @property
    def user_fields(self) -> dict[str, str]:
        """The user fields that are read -> the setting that names each."""
        return {rule.user: "rules" for rule in self.rules}


class CandidateSettings(Section):
    """The lists of recommendations."""

    k: Positive = Field(100, description="Items in the list of a user.")
    exclude_seen: bool = Field(True, description="Leave out items that the user already interacted with.")
    batch_size: Positive = Field(2048, description="Users scored at a time by one actor.")
    engine: Literal["exact", "faiss_ivf"] = Field(
        "exact", description="Exact search, or an inverted file of faiss for catalogues of millions (rec_ray[faiss])."
    )
    probes: Positive = Field(64, description="Lists of the inverted file that a user's search reads (faiss_ivf).")
    recall_floor: Fraction = Field(0.95, description="Share of the exact lists that faiss_ivf must find, or stop.")
    recall_users: Positive = Field(1000, description="Users on whom that share is measured in every run.")
    use_gpu: bool = Field(False, description="Embed items and users and search exactly on GPUs.")
    gpu_share: float = Field(
        1.0, gt=0, le=1, description="Share of a GPU that a process takes: with 0.25 four of them feed one."
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="Width of the products that embed items and users; auto: bf16 on a GPU. Searches are exact."
    )
    shard_items: Positive | None = Field(
        None, description="Items that a process searches at a time; null: as many as a gigabyte of vectors holds."
    )
    filters: FilterSettings = Field(default_factory=FilterSettings, description="What may be recommended to whom.")
    diversity: Fraction = Field(
        0.0, description="Weight of unlikeness to the items before in a list (maximal marginal relevance); 0: off."
    )
    fresh_share: Fraction = Field(
        0.0, description="Least share of new items in the list, from its beginning on; 0: off."
    )
    fresh_days: float = Field(14, gt=0, description="An item is new for so many days after it was first seen.")
    segment: str | None = Field(
        None, description="User field: who has no event and no other feature gets what is popular with the same value."
    )
    similar_items: int = Field(0, ge=0, description="Items like it that are listed for each item; 0: none.")

    @model_validator(mode="after")
    def _fits_together(self) -> CandidateSettings:
        if not self.exclude_seen and (self.filters.seen_types or self.filters.seen_days):
            raise ValueError("filters.seen_types and filters.seen_days say nothing while exclude_seen is false")
        return self

    @property
    def device(self) -> str:
        """What torch calls the device that computes."""
        return "cuda" if self.use_gpu else "cpu"

    @property
    def gpus(self) -> float | None:
        """GPUs of a task."""
        return self.gpu_share if self.use_gpu else None

    @property
    def item_fields(self) -> dict[str, str]:
        """The item fields that are read raw -> the setting that names each."""
        return {field: f"candidates.filters.{name}" for field, name in self.filters.item_fields.items()}

    @property
    def user_fields(self) -> dict[str, str]:
        """The user fields that are read raw -> the setting that names each."""
        named = {field: f"candidates.filters.{name}" for field, name in self.filters.user_fields.items()}
        return named | ({self.segment: "candidates.segment"} if self.segment else {})

    @property
    def changes_lists(self) -> bool:
        """Whether lists are other than the k best items that the user has not seen."""
        return bool(self.diversity or self.fresh_share or self.filters != FilterSettings())
