"""Which pixels of an object without coverage were measured."""

from __future__ import annotations

import numpy as np
import pytest

from torchptycho.core.coverage import find_outside_zeros, find_unmeasured


def make_image(seed: int = 0, shape: tuple[int, int] = (40, 44)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (1 + 0.1 * rng.normal(size=shape) + 0.1j * rng.normal(size=shape)).astype(np.complex64)


def rim(shape: tuple[int, int] = (40, 44)) -> np.ndarray:
    y, x = np.indices(shape)
    return np.hypot(y - 20, x - 22) > 18


@pytest.mark.contract("files.reconstruction.unmeasured")
def test_zeros_and_the_value_of_the_start_are_unmeasured() -> None:
    image = make_image()
    assert not find_unmeasured(image).any()
    for start in (0, 1, 0.5 - 0.25j):
        np.testing.assert_array_equal(find_unmeasured(np.where(rim(), start, image)), rim())
    holed = image.copy()
    holed[18:22, 18:22] = 0
    assert find_unmeasured(holed)[18:22, 18:22].all()


@pytest.mark.contract("files.reconstruction.unmeasured")
def test_the_vacuum_of_a_drawn_object_is_part_of_it() -> None:
    drawn = np.ones((40, 44), np.complex64)
    drawn[10:30, 12:30] = 0.8 * np.exp(0.5j)
    assert not find_unmeasured(drawn).any()
    # A value that also stands inside of the image is no untouched start.
    image = np.where(rim(), 1, make_image())
    image[18:22, 18:22] = 1
    assert not find_unmeasured(image).any()
    assert not find_unmeasured(np.full((8, 8), 0.3 - 0.2j)).any()


@pytest.mark.contract("files.reconstruction.unmeasured")
def test_opaque_parts_inside_of_a_truth_are_judged() -> None:
    truth = np.where(rim(), 0, make_image())
    truth[18:22, 18:22] = 0
    np.testing.assert_array_equal(find_outside_zeros(truth), rim())
    assert not find_outside_zeros(make_image()).any()
