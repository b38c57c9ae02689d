"""Steps of the positions: they gain momentum, and a change of the whole scan may go farther than a single frame."""

from __future__ import annotations

import pytest
import torch
from strategies import make_asymmetric_probe, normal

from torchptycho.physics.patches import extract
from torchptycho.reconstructors.iterative.position_correction import (
    PositionSteps,
    add_momentum,
    fit_linear_part,
    random_search,
)


def scattered(count: int = 40) -> torch.Tensor:
    return 30 * torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_equal_steps_add_up_to_ten_times_one() -> None:
    positions_px = scattered()
    step_px = 0.01 * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # A constant shift of all frames is left to the object.
    step_px = step_px - step_px.mean(0)
    drift_px = torch.zeros_like(step_px)
    for _ in range(200):
        drift_px = add_momentum(step_px, drift_px, positions_px, longest_px=10.0)
    torch.testing.assert_close(drift_px, 10 * step_px, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [0.2, -0.2])
def test_a_change_of_scale_goes_four_times_as_far_as_a_frame(scale: float) -> None:
    positions_px = scattered()
    away = positions_px - positions_px.mean(0)
    moved = add_momentum(scale * away, torch.zeros_like(away), positions_px, longest_px=0.5)
    assert float(moved.norm(dim=1).max()) == pytest.approx(4 * 0.5)
    # All in proportion: it is still a change of scale.
    torch.testing.assert_close(moved / moved.norm(), (scale * away) / (scale * away).norm())


def test_a_single_frame_goes_no_farther_than_its_limit() -> None:
    positions_px = scattered()
    step_px = torch.zeros_like(positions_px)
    step_px[7] = torch.tensor([9.0, -12.0], dtype=torch.float64)
    moved = add_momentum(step_px, torch.zeros_like(step_px), positions_px, longest_px=0.5)
    common = moved.clone()
    common[7] = 0
    assert 0.4 < float(moved[7].norm()) < 0.5 + 4 * 0.5
    assert float(common.norm(dim=1).max()) < float(moved[7].norm())


def test_the_linear_part_of_shifts_is_their_least_squares_map() -> None:
    positions_px = 100 + scattered()
    matrix = torch.tensor([[0.02, -0.01], [0.03, 0.05]], dtype=torch.float64)
    linear = (positions_px - positions_px.mean(0)) @ matrix
    shift_px = linear + torch.tensor([3.0, -7.0], dtype=torch.float64)
    torch.testing.assert_close(fit_linear_part(shift_px, positions_px), linear, rtol=1e-9, atol=1e-9)
    noisy = shift_px + 0.1 * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    away = positions_px - positions_px.mean(0)
    expected = away @ torch.linalg.lstsq(away, noisy - noisy.mean(0)).solution
    torch.testing.assert_close(fit_linear_part(noisy, positions_px), expected, rtol=1e-9, atol=1e-9)
    # Frames on a line know nothing of the other axis.
    line = torch.stack([torch.arange(5.0), torch.zeros(5)], 1).double()
    assert bool(fit_linear_part(line, line).isfinite().all())


@pytest.mark.parametrize("modes", [1, 2])
def test_small_shifts_are_found_from_the_exit_waves(modes: int) -> None:
    n_px, probe = 16, make_asymmetric_probe(16, modes=modes)
    object = torch.nn.functional.avg_pool2d(torch.view_as_real(normal((62, 62), 0)).permute(2, 0, 1), 7, 1)
    object = 1 + 3 * torch.view_as_complex(object.permute(1, 2, 0).contiguous())
    positions_px = scattered(40)
    matrix = torch.tensor([[0.0004, -0.0002], [0.0005, 0.0003]], dtype=torch.float64)
    shift_px = (positions_px - positions_px.mean(0)) @ matrix
    steps = PositionSteps(40, torch.device("cpu"))
    # Within a pixel, because the bilinear interpolation has corners at whole ones.
    start_px = positions_px.floor() + 0.4
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    changes = (extract(object, start_px + shift_px, n_px) - extract(object, start_px, n_px))[:, None] * probe
    for index in order.split(15):
        patches = extract(object, start_px[index], n_px)[None]
        steps.add(index, object[None], patches, [probe], start_px[index], [changes[index]])
    torch.testing.assert_close(steps.residual, changes.abs().square().sum((1, 2, 3)))
    found = steps.solve_per_frame()
    assert float((found - shift_px).norm() / shift_px.norm()) < 0.03
    found = steps.solve_affine(positions_px)
    assert float((found - shift_px).norm() / shift_px.norm()) < 0.01


def test_a_frame_without_light_does_not_move_and_has_no_say() -> None:
    positions_px = scattered(6)
    steps = PositionSteps(6, torch.device("cpu"))
    assert not bool(steps.solve_per_frame().any())
    assert not bool(steps.solve_affine(positions_px).any())


@pytest.mark.contract("refine.positions.lost")
def test_a_frame_that_fits_badly_is_looked_for_around_both_its_places() -> None:
    given_px = scattered(30)
    truth_px = given_px.clone()
    truth_px[4] += torch.tensor([1.5, -1.0], dtype=torch.float64)
    positions_px = given_px.clone()
    # Frame 9 was moved far from where it belongs, which is where it was said to be.
    positions_px[9] += torch.tensor([20.0, 30.0], dtype=torch.float64)
    asked: list[torch.Tensor] = []

    def measure(index: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        asked.extend(places.clone())
        assert index.tolist() == [4, 9]
        return (places - truth_px[index]).norm(dim=2)

    residual = torch.ones(30, dtype=torch.float64)
    # Three times the median is not yet lost.
    residual[4], residual[9], residual[12] = 4.0, 50.0, 3.0
    which, where = random_search(measure, positions_px, given_px, residual, 3.0, torch.Generator().manual_seed(0))
    assert len(asked) == 1 + 8
    torch.testing.assert_close(asked[0], positions_px[[4, 9]])
    for number, places in enumerate(asked[1:]):
        around = (positions_px, given_px)[number % 2][[4, 9]]
        assert float((places - around).norm(dim=1).max()) <= 3.0
        assert float((places - around).norm(dim=1).min()) > 0
    before = (positions_px - truth_px).norm(dim=1)
    best = torch.stack([(places - truth_px[[4, 9]]).norm(dim=1) for places in asked[1:]]).amin(0)
    expected = [n for n, least in zip((4, 9), best.tolist(), strict=True) if least < 0.8 * float(before[n])]
    assert which.tolist() == expected
    assert 9 in expected
    torch.testing.assert_close((where - truth_px[which]).norm(dim=1), best[[(4, 9).index(n) for n in expected]])


def test_frames_that_fit_alike_are_not_looked_for() -> None:
    positions_px = scattered(5)
    which, where = random_search(
        lambda *_: pytest.fail("it was measured"),
        positions_px,
        positions_px,
        torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0]).double(),
        3.0,
        torch.Generator(),
    )
    assert (len(which), where.shape) == (0, (0, 2))
