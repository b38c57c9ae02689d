"""Support, power and blur of the probe against their formulas at single pixels."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import normal
from tolerances import assert_close

from torchptycho.physics.probe_constraints import scale_probe_power, smoothing_envelope, soft_disc


@pytest.mark.parametrize("n_px", [16, 17])
def test_disc_falls_from_one_to_zero_over_its_edge(n_px: int) -> None:
    disc = soft_disc(n_px, diameter_px=8.0, edge_px=4.0)
    middle = n_px // 2
    # Along an axis the radius is 4 px: 1 up to 2 px from the centre, 1/2 at 4 px, 0 from 6 px.
    expected = [1.0, 1.0, 1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4), 0.0]
    along = torch.tensor(expected)
    assert_close(disc[middle, middle : middle + 7], along, "stored_single")
    assert_close(disc[middle : middle + 7, middle], along, "stored_single")
    assert_close(disc[middle, middle - 6 : middle + 1].flip(0), along, "stored_single")
    # Beyond the edge it stays 0.
    assert float(disc[0].abs().max()) == float(disc[0, 0]) == 0
    # (3, 4) px is 5 px from the centre.
    assert float(disc[middle + 3, middle - 4]) == pytest.approx(expected[5], rel=1e-6)


def test_disc_without_an_edge_is_one_inside_and_zero_outside() -> None:
    disc = soft_disc(16, diameter_px=6.0, edge_px=0)
    y, x = torch.meshgrid(torch.arange(16.0) - 8, torch.arange(16.0) - 8, indexing="ij")
    assert torch.equal(disc, (torch.hypot(y, x) < 3).float())


def test_power_of_all_modes_is_the_number_of_photons() -> None:
    probe = normal((2, 3, 8, 8), 1, torch.complex64)
    photons = torch.tensor([50.0, 2e6])
    scaled = scale_probe_power(probe, photons)
    assert_close(scaled.abs().square().sum((-3, -2, -1)), photons, "single")
    assert_close(scale_probe_power(probe[0], photons[0]), scaled[0], "single")
    # Only the scale changes.
    ratio = scaled / probe
    assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio).contiguous(), "single")
    # An empty probe stays empty: 0 times an infinite factor is no number.
    assert not bool(scale_probe_power(torch.zeros_like(probe), photons).abs().any())


def test_envelope_is_that_of_a_gaussian_blur() -> None:
    envelope = smoothing_envelope(10, sigma_px=0.7)
    assert float(envelope[5, 5]) == 1
    for y, x in ((3, 6), (0, 5), (5, 0), (9, 9)):
        squared = ((y - 5) / 10) ** 2 + ((x - 5) / 10) ** 2
        assert float(envelope[y, x]) == pytest.approx(math.exp(-4 * math.pi**2 * 0.7**2 * squared), rel=1e-6)
    # Against a blur in real space: its transfer function squared.
    place = torch.arange(-40, 41, dtype=torch.float64)
    kernel = torch.exp(-place.square() / (2 * 2.5**2))
    kernel = kernel / kernel.sum()
    transfer = (kernel * torch.cos(2 * math.pi * place * 3 / 64)).sum()
    assert float(smoothing_envelope(64, 2.5)[32, 35]) == pytest.approx(float(transfer.square()), rel=1e-5)
