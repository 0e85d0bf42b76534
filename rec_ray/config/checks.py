"""Settings of the checks that compare a night with the live version before anything is pushed.

Input: plain values. Output: a frozen section.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rec_ray.config.evaluation import Gate
from rec_ray.config.section import Fraction, Section


class CheckSettings(Section):
    """Checks of a night against the live version, before the first row is pushed."""

    data: Gate = Field(
        "refuse", description="If the data differ too much from the live version's: refuse before training, warn, off."
    )
    lists: Gate = Field(
        "refuse", description="If the lists lose users or items, or are less varied than the live version's: likewise."
    )
    online: bool = Field(
        True, description="After a publication, compare features of a sample online with those of the run, and warn."
    )
    loss: Fraction = Field(
        0.2, description="Accepted share of events, users or items that are missing, and of a single user's events."
    )
    shift: Annotated[float, Field(gt=0)] = Field(
        0.25, description="Accepted population stability index of a feature; 0.25 is customary for a large change."
    )
    max_age_hours: Annotated[float, Field(gt=0)] = Field(
        26.0, description="Age of the live version and of its newest event from which `rec-ray check` fails."
    )
