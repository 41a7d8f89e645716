"""Base of all configuration sections, and the types of their values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Rho = Annotated[float, Field(ge=0.5, le=1000, allow_inf_nan=False)]
TopLevel = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["float32", "tf32", "bfloat16"]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


def _auto_or_number(value: object) -> str:
    return "auto" if isinstance(value, str) else "number"


AutoCount = Annotated[
    Annotated[Count, Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_auto_or_number),
]
