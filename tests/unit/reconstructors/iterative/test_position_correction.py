"""Steps of the positions: they gain momentum, and a change of the whole scan may go farther than a single frame."""

from __future__ import annotations

import pytest
import torch

from torchptycho.reconstructors.iterative.position_correction import add_momentum


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
