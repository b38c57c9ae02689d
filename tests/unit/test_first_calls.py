"""The type checker of the tests checks the first calls of every function in each test."""

from __future__ import annotations

import dataclasses

import first_calls
import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

import torchptycho.physics.diffraction as diffraction

checked = jaxtyped(typechecker=first_calls.check_first_calls)


@checked
def add(one: Float[Tensor, "n n"], other: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return one + other


@checked
@dataclasses.dataclass
class Scale:
    by: float

    @checked
    def apply(self, image: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        return image * self.by

    @property
    @checked
    def half(self) -> float:
        return self.by / 2  # type: ignore[no-any-return]


SQUARE, OBLONG = torch.ones(2, 2), torch.ones(2, 3)


@pytest.mark.parametrize("take", [lambda image: add(image, image), lambda image: Scale(2).apply(image)])
def test_first_calls_of_a_test_are_checked(take, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(first_calls, "_LIMIT", 3)
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            take(OBLONG)
        take(SQUARE)
        take(SQUARE)
        assert take(OBLONG).shape == (2, 3)
        first_calls.check_again()
    with pytest.raises(TypeCheckError):
        take(OBLONG)


def test_fields_and_properties_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_calls, "_LIMIT", 2)
    # An int may stand where a float is expected.
    assert Scale(1).half == 0.5
    with pytest.raises(TypeCheckError):
        Scale("1")  # type: ignore[arg-type]
    assert Scale("1").by == "1"  # type: ignore[arg-type,comparison-overlap]
    wrong = Scale(1)
    wrong.by = 2j  # type: ignore[assignment]
    with pytest.raises(TypeCheckError):
        _ = wrong.half
    assert wrong.half == 1j


def test_function_within_a_function_is_always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_calls, "_LIMIT", 1)

    @checked
    def double(image: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        return 2 * image

    double(SQUARE)
    with pytest.raises(TypeCheckError):
        double(OBLONG)


@pytest.mark.skipif(not hasattr(diffraction.far_field, "__wrapped__"), reason="runs where `make test` checks types")
def test_package_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        diffraction.far_field(torch.ones(4, 5, dtype=torch.complex64))
