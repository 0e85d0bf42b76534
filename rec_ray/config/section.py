"""What all sections of the settings are made of: the base class and the kinds of number.

A section is declared with typed, described fields; what does not fit is a validation error. It knows no setting.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

ENV_PREFIX = "REC_RAY__"
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: frozen, a misspelt key is an error, and an empty section or list has its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: Any) -> Any:
        """Leave out what a file holds no value for, such as a section whose lines are all commented out."""
        if not isinstance(values, dict):
            return values
        empty = {name for name, field in cls.model_fields.items() if field.default_factory and name in values}
        return {name: value for name, value in values.items() if value is not None or name not in empty}
