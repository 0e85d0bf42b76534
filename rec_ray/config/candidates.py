"""Settings of the recommendation lists: candidates, filters and publishing to Feast.

The sections are declarations: they load no model and open no store.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rec_ray.config.section import Fraction, Positive, Section


class UserRule(Section):
    """Condition on an item field and a user field: `item: age_limit, must_be: at_most, user: age`."""

    item: str = Field(description="Item field.")
    must_be: Literal["equal", "at_least", "at_most", "contains", "contained_in"] = Field(
        description="Comparison of the item's value with the user's; an item without a value is allowed for all users."
    )
    user: str = Field(description="User field.")
    unknown_user: Literal["refuse", "allow"] = Field(
        "refuse", description="Refuse or allow items with a value to users without one."
    )


class FilterSettings(Section):
    """Eligibility of items for users, applied before a list is cut to k. A missing value restricts nothing."""

    seen_types: list[str] = Field(
        default_factory=list, description="Event types that mark an item as seen; empty: all."
    )
    seen_days: float | None = Field(None, gt=0, description="Days for which an item stays seen; null: for ever.")
    available: str | None = Field(None, description="Boolean item field; items with false are dropped.")
    available_from: str | None = Field(None, description="Timestamp item field; items are dropped before that time.")
    available_until: str | None = Field(None, description="Timestamp item field; items are dropped from that time on.")
    category: str | None = Field(None, description="Item field with categories, used by the next five settings.")
    separator: str | None = Field(None, description="Separator of category paths; null: that of the feature.")
    allowed_categories: list[str] = Field(
        default_factory=list, description="Allow only these categories; a path includes its subcategories."
    )
    blocked_categories: list[str] = Field(
        default_factory=list, description="Drop these categories and their subcategories."
    )
    most_per_category: Positive | None = Field(None, description="Maximum number of items of one category in a list.")
    category_level: Positive | None = Field(
        None, description="Depth of the path that most_per_category compares; null: the complete path."
    )
    rules: list[UserRule] = Field(
        default_factory=list, description="Conditions such as {item: age_limit, must_be: at_most, user: age}."
    )
    always_include: list[str] = Field(
        default_factory=list, description="Items to put into every list, unless seen, unavailable or against a rule."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> FilterSettings:
        dependent = ("separator", "allowed_categories", "blocked_categories", "most_per_category", "category_level")
        named = [name for name in dependent if getattr(self, name)]
        if named and self.category is None:
            raise ValueError(f"{named[0]} needs candidates.filters.category, the item field with the categories")
        if self.category_level is not None and self.most_per_category is None:
            raise ValueError("category_level has no effect without most_per_category")
        return self

    @property
    def item_fields(self) -> dict[str, str]:
        """Item fields to read -> setting that names each."""
        named = {name: getattr(self, name) for name in ("available", "available_from", "available_until", "category")}
        return {field: name for name, field in named.items() if field} | {rule.item: "rules" for rule in self.rules}

    @property
    def user_fields(self) -> dict[str, str]:
        """User fields to read -> setting that names each."""
        return {rule.user: "rules" for rule in self.rules}


class CandidateSettings(Section):
    """Computation of the recommendation lists."""

    k: Positive = Field(100, description="Length of a user's list.")
    exclude_seen: bool = Field(True, description="Drop items that the user already interacted with.")
    batch_size: Positive = Field(2048, description="Users in a batch of one task.")
    engine: Literal["exact", "faiss_ivf"] = Field(
        "exact", description="Exact search, or a faiss inverted file for catalogues of millions (extra: faiss)."
    )
    probes: Positive = Field(64, description="Inverted lists searched per user (nprobe of faiss_ivf).")
    recall_floor: Fraction = Field(
        0.95, description="Minimum recall of faiss_ivf against exact search; below it the run stops."
    )
    recall_users: Positive = Field(1000, description="Users on which every run measures that recall.")
    use_gpu: bool = Field(False, description="Use GPUs for embedding and exact search.")
    gpu_share: float = Field(1.0, gt=0, le=1, description="GPUs per process; with 0.25 four processes share one.")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="Precision of the towers; auto: bf16 on a GPU, else float32. The search stays exact."
    )
    shard_items: Positive | None = Field(
        None, description="Items in a shard of the search; null: as many as fill 1 GB with vectors."
    )
    filters: FilterSettings = Field(default_factory=FilterSettings, description="Eligibility of items for users.")
    diversity: Fraction = Field(
        0.0, description="Weight of dissimilarity in re-ranking by maximal marginal relevance; 0: off."
    )
    fresh_share: Fraction = Field(0.0, description="Minimum share of new items in every prefix of a list; 0: off.")
    fresh_days: float = Field(14, gt=0, description="Days for which an item is new, from its first feature row on.")
    segment: str | None = Field(
        None, description="User field; users without events or other features get the popular items of their value."
    )
    similar_items: int = Field(0, ge=0, description="Length of the list of similar items of each item; 0: none.")

    @model_validator(mode="after")
    def _fits_together(self) -> CandidateSettings:
        if not self.exclude_seen and (self.filters.seen_types or self.filters.seen_days):
            raise ValueError("filters.seen_types and filters.seen_days have no effect while exclude_seen is false")
        return self

    @property
    def device(self) -> str:
        """Device of the computation, as torch names it."""
        return "cuda" if self.use_gpu else "cpu"

    @property
    def gpus(self) -> float | None:
        """GPUs to reserve for a task; None if it uses none."""
        return self.gpu_share if self.use_gpu else None

    @property
    def item_fields(self) -> dict[str, str]:
        """Raw item fields to read -> setting that names each."""
        return {field: f"candidates.filters.{name}" for field, name in self.filters.item_fields.items()}

    @property
    def user_fields(self) -> dict[str, str]:
        """Raw user fields to read -> setting that names each."""
        named = {field: f"candidates.filters.{name}" for field, name in self.filters.user_fields.items()}
        return named | ({self.segment: "candidates.segment"} if self.segment else {})

    @property
    def changes_lists(self) -> bool:
        """True if lists differ from the k best items that the user has not seen."""
        return bool(self.diversity or self.fresh_share or self.filters != FilterSettings())
