"""Base class of all sections of the settings, and their number types.

A section declares typed fields with descriptions; a wrong value or an unknown key is a validation error.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

ENV_PREFIX = "REC_RAY__"
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base class of all sections: frozen; unknown keys are refused; an empty section or list takes its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: Any) -> Any:
        """Drop keys without a value, such as a section whose lines are all commented out."""
        if not isinstance(values, dict):
            return values
        empty = {name for name, field in cls.model_fields.items() if field.default_factory and name in values}
        return {name: value for name, value in values.items() if value is not None or name not in empty}
