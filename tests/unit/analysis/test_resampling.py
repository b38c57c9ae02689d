"""An image on other pixels, against functions whose values are known everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torchptycho.analysis.resampling import resample_image
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction

ORIGIN_PX = (-7, 11)


def make_image(shape: tuple[int, int] = (50, 60), period_px: float = 25.0) -> Reconstruction:
    """A wave that is slow against the pixels, its coverage a plane, with a corner that is not valid."""
    valid = np.ones(shape, bool)
    valid[:10, :12] = False
    y, x = evaluate_places(shape, ORIGIN_PX)
    values = np.where(valid, evaluate_wave(y, x, period_px), 1e6)
    return Reconstruction(
        object=values.astype(np.complex64),
        coverage=(0.5 + 0.004 * (y + x)).astype(np.float32),
        valid=valid,
        origin_px=ORIGIN_PX,
        provenance={"seed": 3},
    )


def evaluate_places(shape: tuple[int, ...], origin_px: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.indices(shape)
    return y + origin_px[0], x + origin_px[1]


def evaluate_wave(y: np.ndarray, x: np.ndarray, period_px: float) -> np.ndarray:
    return np.asarray(1.5 + np.exp(2j * np.pi * (y + 0.5 * x) / period_px) + 0.4 * np.sin(2 * np.pi * x / period_px))


@pytest.mark.contract("compare.pixels")
@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0, 0.5])
@pytest.mark.parametrize("shift_px", [(0.0, 0.0), (0.3, -1.4)])
def test_values_are_those_of_the_places(factor: float, shift_px: tuple[float, float]) -> None:
    image = make_image()
    found = resample_image(image, factor, 3e-9, shift_px)
    assert (found.object_pixel_m, found.provenance) == (3e-9, {"seed": 3})
    # Position p becomes p / factor + shift.
    y, x = (
        (place - shift) * factor
        for place, shift in zip(evaluate_places(found.object.shape, found.origin_px), shift_px, strict=True)
    )
    sigma = 0.4 * math.sqrt(max(factor**2 - 1, 0))
    # A Gaussian lowers a wave of this period by less than this.
    lost = 2 * (2 * np.pi * sigma / 25) ** 2 + 1e-2
    inner = np.zeros(found.valid.shape, bool)
    edge = 2 + math.ceil((4 + 4 * sigma) / factor)
    inner[edge:-edge, edge:-edge] = True
    # A cubic spline rings for some pixels beside the corner.
    clear = inner & ((y > ORIGIN_PX[0] + 16 + 4 * sigma) | (x > ORIGIN_PX[1] + 18 + 4 * sigma))
    assert clear.mean() > 0.2
    np.testing.assert_allclose(found.object[clear], evaluate_wave(y, x, 25)[clear], atol=lost)
    np.testing.assert_allclose(found.coverage[inner], (0.5 + 0.004 * (y + x))[inner], rtol=1e-5)
    # Beside invalid pixels the average is over the valid ones: their values leave no trace.
    assert np.abs(found.object[found.valid]).max() < 3.5
    known = (y >= ORIGIN_PX[0] + 10) | (x >= ORIGIN_PX[1] + 12)
    np.testing.assert_array_equal(found.valid[inner], known[inner])
    assert not found.object[~found.valid].any()


def test_every_pixel_between_the_first_and_the_last_is_there() -> None:
    found = resample_image(make_image(), 2.0, None)
    # Rows -7 to 42 and columns 11 to 70 of the fine pixels.
    assert (found.origin_px, found.object.shape) == ((-3, 6), (25, 30))
    assert found.valid[-1, -1]
    found = resample_image(make_image(), 0.5, None, (0.0, 1.0))
    assert (found.origin_px, found.object.shape) == ((-14, 23), (99, 119))


def test_pixels_that_are_too_large_are_refused() -> None:
    assert resample_image(make_image((40, 60)), 10.0, None).object.shape == (4, 6)
    with pytest.raises(EvaluationError, match="fewer than 4 pixels"):
        resample_image(make_image((30, 60)), 10.0, None)


@pytest.mark.contract("compare.pixels")
@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_a_flat_image_is_flat_up_to_the_edge_of_what_is_valid(factor: float) -> None:
    image = make_image()
    flat = Reconstruction(
        object=np.where(image.valid, 0.7j, 1e6).astype(np.complex64),
        coverage=image.coverage,
        valid=image.valid,
        origin_px=(0, 0),
    )
    found = resample_image(flat, factor, None)
    assert not found.valid.all()
    np.testing.assert_allclose(found.object[found.valid], 0.7j, rtol=1e-6)


@pytest.mark.contract("compare.pixels")
def test_finer_pixels_are_interpolated_by_cubic_splines() -> None:
    peak = np.zeros((31, 31), np.complex64)
    peak[15, 15] = 1 - 2j
    image = Reconstruction(object=peak, coverage=np.abs(peak), valid=np.ones(peak.shape, bool), origin_px=(0, 0))
    found = resample_image(image, 0.5, None)
    # The spline of a unit peak: coefficients -6 z / (1 - z^2) z^|k| with z = sqrt(3) - 2; B-splines at 1/2 and 3/2 px
    # are 23/48 and 1/48.
    z = math.sqrt(3) - 2
    coefficient = -6 * z / (1 - z**2) * z ** np.arange(3)
    half = (23 * (coefficient[0] + coefficient[1]) + coefficient[1] + coefficient[2]) / 48
    np.testing.assert_allclose(found.object[30, 30:32], peak[15, 15] * np.array([1, half]), rtol=1e-6)
    # Coverage is linear between pixels, and so never negative.
    np.testing.assert_allclose(found.coverage[30, 29:34], math.sqrt(5) * np.array([0.5, 1, 0.5, 0, 0]), atol=1e-6)
