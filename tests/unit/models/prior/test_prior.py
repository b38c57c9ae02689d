"""The prior's network and its application to a canvas: invariances, bounds, and objects of any size."""

from __future__ import annotations

import pytest
import torch
from tolerances import relative_l2
from torch import Tensor

from torchptycho.models.prior import PriorConfig, PriorNetwork, apply_prior
from torchptycho.models.prior.canvas import _from_view, _to_view

SMALL = PriorConfig(widths=(8, 8, 8), deepest_blocks=1)


@pytest.fixture
def network() -> PriorNetwork:
    """A network that changes what it is given."""
    torch.manual_seed(0)
    network = PriorNetwork(SMALL).eval().requires_grad_(False)
    torch.nn.init.normal_(network.head.weight, std=0.3)
    return network


def make_object(height: int = 64, width: int = 72, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real, imaginary = torch.randn(2, height, width, generator=generator)
    sigma = 0.05 + 0.1 * torch.rand(height, width, generator=generator)
    return 0.8 + 0.2 * torch.complex(real, imaginary), sigma


@pytest.mark.contract("prior.scale")
def test_the_network_scales_with_the_object_and_its_noise(network: PriorNetwork) -> None:
    object, sigma = make_object()
    found = network(object[None], sigma[None])
    assert relative_l2(found, object[None]) > 0.01
    assert relative_l2(network(object[None] * 7, sigma[None] * 7), 7 * found) < 1e-5


@pytest.mark.contract("prior.phase")
def test_the_global_phase_goes_along(network: PriorNetwork) -> None:
    object, sigma = make_object()
    factor = torch.exp(torch.tensor(2.3j))
    assert (
        relative_l2(apply_prior(network, object * factor, sigma), factor * apply_prior(network, object, sigma)) < 1e-4
    )


@pytest.mark.contract("prior.bounded")
def test_no_pixel_is_moved_by_more_than_the_bound(network: PriorNetwork) -> None:
    torch.nn.init.normal_(network.head.weight, std=1e3)
    object, sigma = make_object()
    moved = (network(object[None], sigma[None])[0] - object).abs()
    limit = SMALL.max_correction * sigma
    assert float((moved / limit).max()) <= 1 + 1e-4
    assert float((moved / limit).max()) > 0.9


@pytest.mark.contract("prior.off")
def test_it_is_off_where_there_are_many_photons(network: PriorNetwork) -> None:
    object, _ = make_object()
    sigma = torch.full(object.shape, 0.1)
    sigma[:, 36:] = 5e-4 * float(object.abs().square().mean().sqrt())
    moved = (apply_prior(network, object, sigma) - object).abs()
    assert float(moved[:, 36:].max()) < 1e-6
    assert float(moved[:, :36].max()) > 1e-3


@pytest.mark.contract("prior.size")
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 64), (65, 130)])
def test_objects_have_any_size_and_a_silent_network_returns_them(shape: tuple[int, int]) -> None:
    network = PriorNetwork(SMALL).requires_grad_(False)
    torch.nn.init.zeros_(network.head.weight)
    object, sigma = make_object(*shape)
    assert relative_l2(apply_prior(network, object, sigma), object) < 1e-5


@pytest.mark.contract("prior.tiles")
@pytest.mark.parametrize("average", [False, True])
def test_tiles_leave_no_trace(network: PriorNetwork, average: bool) -> None:
    object, sigma = make_object(260, 300)
    whole = apply_prior(network, object, sigma, average=average)
    assert relative_l2(whole, object) > 0.01
    assert relative_l2(apply_prior(network, object, sigma, tile_px=200, average=average), whole) < 1e-5


def test_views_are_undone() -> None:
    object, _ = make_object(8, 12)
    for view in range(4):
        assert (
            torch.equal(_from_view(_to_view(object, view), view), object)
            or relative_l2(_from_view(_to_view(object, view), view), object) < 1e-6
        )


@pytest.mark.contract("prior.dark")
def test_pixels_without_photons_stay_and_harm_no_other(network: PriorNetwork) -> None:
    object, sigma = make_object()
    sigma[:20], object[:5] = torch.inf, torch.nan
    found = apply_prior(network, object, sigma)
    assert torch.equal(found[5:20], object[5:20])
    assert bool(found[:5].isnan().all())
    assert bool(torch.isfinite(found[20:]).all())
    assert torch.equal(apply_prior(network, object[:20], sigma[:20])[5:], object[5:20])


def test_an_object_of_zeros_stays_zero(network: PriorNetwork) -> None:
    found = apply_prior(network, torch.zeros(32, 32, dtype=torch.complex64), torch.full((32, 32), 0.1))
    assert bool(torch.isfinite(found).all())
    assert float(found.abs().max()) < 1e-6
