"""Requests and answers of the HTTP servers, checked by pydantic.

Input: the body of a request. Output: the arguments of `Recommender.recommend`, and a list as JSON values.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rec_ray.api.recommendation import Recommendation
from rec_ray.errors import RecRayError, UnavailableError


class Event(BaseModel):
    """An event of a history; times need a zone."""

    model_config = ConfigDict(extra="forbid")

    item_id: str | int
    event_timestamp: datetime | None = None
    event_type: str | None = None
    event_value: float | None = None


class RecommendRequest(BaseModel):
    """Body of `/recommend`: a user of the batch, or a history and features."""

    model_config = ConfigDict(extra="forbid")

    user_id: str | int | None = None
    history: list[str | int] | list[Event] | None = None
    features: dict[str, Any] | None = None
    k: int = Field(10, ge=1, le=1000)
    exclude: list[str | int] = []

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Recommender.recommend`."""
        history: list[Any] | None = self.history
        if history and isinstance(history[0], Event):
            given = set().union(*(each.model_fields_set for each in history))
            history = [each.model_dump(include=given) for each in history]
        return {
            "user_id": self.user_id,
            "history": history,
            "features": self.features,
            "k": self.k,
            "exclude": self.exclude,
        }


def as_answer(found: Recommendation) -> dict[str, Any]:
    """Return a list as JSON values."""
    return {"version": found.version, "item_ids": found.item_ids, "scores": found.scores, "method": found.method}


def status_of(error: RecRayError) -> int:
    """Return the HTTP status of an error: 503 if a store does not respond, else 422."""
    return 503 if isinstance(error, UnavailableError) else 422
