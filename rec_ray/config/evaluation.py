"""Settings of the evaluation: the split of the events, the cut-offs and the gate.

Input: plain values. Output: a frozen section.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
)

from rec_ray.config.section import Fraction, Positive, Section

Gate = Annotated[Literal["warn", "refuse", "off"], BeforeValidator(lambda gate: "off" if gate is False else gate)]


class EvaluationSettings(Section):
    """Evaluation of a model before it is published."""

    split: Literal["time", "leave_one_out"] = Field(
        "time", description="Held out: the end of time, or the last positive event of each user."
    )
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of all events after the test cut-off (split: time)."
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="Share of all events between the validation and the test cut-off (split: time)."
    )
    validation_users: Positive = Field(
        10_000, description="Users for the validation NDCG@10 after each epoch; the metrics always cover all users."
    )
    ks: list[Positive] = Field([5, 10, 20, 50, 100], description="Cut-offs of Recall@k and NDCG@k.", min_length=1)
    gate: Gate = Field(
        "warn", description="If the model is worse than popularity or the live version: warn, refuse to publish, off."
    )
    gate_margin: Fraction = Field(
        0.0, description="Share by which NDCG@10 may be below popularity's before the gate acts."
    )
    gate_live_margin: Fraction = Field(
        0.05, description="Share by which NDCG@10 may be below that of the live version before the gate acts."
    )
