"""Frozen, validated dataclasses for configurations, whose errors are ConfigErrors of one line."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from torchptycho.core.errors import ConfigError

__all__ = ["Count", "Domain", "Fraction", "NonNegative", "Positive", "to_config_error", "validated_dataclass"]

T = TypeVar("T")

Domain = Literal["counts", "amplitude"]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def validated_dataclass(kind: type[T]) -> type[T]:
    """Turn a class into a frozen, validated dataclass that refuses unknown fields, NaN and infinity."""
    rules = ConfigDict(extra="forbid", allow_inf_nan=False)
    built = pydantic_dataclass(frozen=True, kw_only=True, config=rules)(kind)
    construct = built.__init__

    @functools.wraps(construct)
    def checked_init(self: Any, *args: Any, **values: Any) -> None:
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            raise to_config_error(error, kind.__name__) from None

    built.__init__ = checked_init  # type: ignore[method-assign]
    return cast(type[T], built)


def to_config_error(error: ValidationError, source: str) -> ConfigError:
    """Convert the first validation error to a ConfigError of one line."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    return ConfigError(f"{source}: '{name}': {first['msg']}; found {first['input']!r}.")
