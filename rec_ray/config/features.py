"""Settings of events and features: the columns to read, and the role of each.

Input: plain values. Output: frozen sections.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from rec_ray.config.section import Positive, Section
from rec_ray.config.training import History, UserId
from rec_ray.schema import FeatureDeclaration


def _validate_once(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Reject a value of another kind with one message; pydantic would give one message for each kind."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError("expected a number from 1 on, auto, or null") from None


AUTO = "auto"
EventsPerUser = Annotated[Positive | Literal["auto"] | None, WrapValidator(_validate_once)]


class InteractionSettings(Section):
    """Meaning of the events: their types and values."""

    type_field: str | None = Field("interaction_type", description="Field with the type of an event, or null.")
    value_field: str | None = Field(
        None, description="Field with a rating, or null; scales the weight of a positive by rating / largest rating."
    )
    min_positive_value: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Lowest value of a positive; null: above 0. Events below it are negatives: never learned as "
        "positives, never targets, not counted for popularity.",
    )
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Weight of a positive by type; a type that is not listed weighs 1."
    )
    negative_types: list[str] = Field(default_factory=list, description="Types that are never positives.")
    events_per_user: EventsPerUser = Field(
        "auto",
        description="Newest events of one user that an epoch learns from and popularity counts, so that a crawler does "
        "not outweigh all others; older ones are history and seen items. auto: 10 times the 90 % quantile of events "
        "per user, at least 100. null: all.",
    )
    exclude_users: list[UserId] = Field(
        default_factory=list, description="Ids of users who are left out: their events, features and lists."
    )


class FeatureSettings(Section):
    """Features to use and the kind of each; without `auto`, kinds are never inferred from values."""

    auto: bool = Field(
        False,
        description="Decide features, type and value of events from a sample when a run starts, as `rec-ray init "
        "--feast` does; what is set here stays. The model stores the decisions. Short form: `features: auto`.",
    )
    user: dict[str, FeatureDeclaration] = Field(default_factory=dict, description="Features of users, by field name.")
    item: dict[str, FeatureDeclaration] = Field(default_factory=dict, description="Features of items, by field name.")
    interaction: InteractionSettings = Field(default_factory=InteractionSettings, description="Meaning of the events.")
    user_history: History = Field(
        "as_of_event",
        description="Values of user features for an event: as_of_event, those valid at its time; or as_of_now, "
        "today's for every event (a table without history; values that events changed leak into training).",
    )
    item_history: History = Field(
        "as_of_event", description="The same for item features: as_of_event (the test cut-off), or as_of_now."
    )
    item_name: str | None = Field(None, description="Field with the display name of items, for recommend and reports.")
    text_encoder: str = Field(
        "hashing",
        pattern=r"^(hashing|transformers:\S.*)$",
        description="Encoder of item texts: hashing (n-grams), or transformers:<name or path of a model>.",
    )
    text_buckets: Positive = Field(16_384, description="Hash buckets for the n-grams of all text fields.")
    max_vocabulary: Positive = Field(100_000, description="Most frequent values to keep of a categorical field.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        return {"auto": True} if values == AUTO else values
