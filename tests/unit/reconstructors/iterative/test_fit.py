"""Figures of a fit, starts and objectives against their formulas, pixel by pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from strategies import normal
from torch import Tensor

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative.autodiff import compute_objective
from torchptycho.reconstructors.iterative.fit import ReducedChiSquared, compute_wave_correction
from torchptycho.reconstructors.iterative.initial_state import _crop_start_to_canvas
from torchptycho.reconstructors.iterative.problem import Problem, open_problem
from torchptycho.reconstructors.iterative.rpie import (
    _compute_step_products,
    _remove_scale,
    _solve_step_lengths,
    choose_batch_size,
    compute_frame_misfits,
    measure_misfit,
    split_into_batches,
)
from torchptycho.reconstructors.iterative.state import RefinementState

MASK = torch.ones(4, 4, dtype=torch.bool)
MASK[1, 2] = MASK[3, 0] = False


def make_batch(seed: int, frames: int = 3) -> tuple[Tensor, Tensor]:
    """Expected and measured counts of some frames, the measured ones 0 under the mask."""
    generator = torch.Generator().manual_seed(seed)
    intensity = 20 * torch.rand(frames, 4, 4, generator=generator, dtype=torch.float64) + 0.1
    return intensity, torch.poisson(intensity, generator=generator) * MASK


@pytest.mark.parametrize("masked", [True, False])
def test_changes_and_figures_are_those_of_the_formulas(masked: bool) -> None:
    mask = MASK if masked else None
    weight = MASK.double() if masked else torch.ones(4, 4, dtype=torch.float64)
    sums = np.zeros(4)
    misfit = ReducedChiSquared(torch.zeros(4, 4, dtype=torch.float64))
    n_frames = 0
    for seed, frames in ((0, 3), (1, 2)):
        intensity, counts = make_batch(seed, frames)
        relative = (counts - intensity) / (intensity + 1) * weight
        for likelihood, expected in (
            ("poisson", (relative / 2).clamp_max(4)),
            ("amplitude", ((counts / intensity).sqrt() - 1) * weight),
        ):
            collected = misfit if likelihood == "poisson" else ReducedChiSquared(torch.zeros(4, 4))
            change = compute_wave_correction(intensity, counts, mask, likelihood, collected)  # type: ignore[arg-type]
            torch.testing.assert_close(change, expected)
        deviation = ((counts - intensity).square() / (intensity + 1) * weight).sum()
        amplitude = ((counts.sqrt() - intensity.sqrt()).square() * weight).sum()
        sums += np.array([deviation, (weight / (intensity + 1)).sum(), amplitude, counts.sum()])
        n_frames += frames
    good = int(weight.sum())
    fit = misfit.compute_fit(good)
    # sum I / (I + 1) = number of pixels - sum 1 / (I + 1).
    assert fit.misfit == pytest.approx(sums[0] / (n_frames * good - sums[1]), rel=1e-9)
    assert fit.residual == pytest.approx(sums[2] / sums[3], rel=1e-9)


@pytest.fixture(scope="module")
def scan() -> Scan:
    made = simulate(SimulateConfig(n_px=16, object_px=40, n_frames=24, photons_per_frame=1e4, probe_defocus_waves=1))
    mask = np.ones((16, 16), bool)
    mask[3, 5:9] = False
    return dataclasses.replace(made, mask=mask)


@pytest.fixture
def problem(scan: Scan) -> Iterator[Problem]:
    with open_problem(scan, margin_px=2, dtype=torch.complex128) as opened:
        yield opened


def make_state(problem: Problem, scan: Scan) -> RefinementState:
    object = 1 + 0.1 * normal(problem.shape, 1)
    state = RefinementState.begin(object, torch.from_numpy(scan.probe).to(object), torch.from_numpy(scan.positions_px))
    state.background += 0.4
    return state


def compute_intensity(problem: Problem, state: RefinementState, index: Tensor) -> Tensor:
    """Expected counts by whole-canvas arithmetic, at positions that are whole pixels."""
    corners = problem.compute_corners_px(state.positions_px[index]).round().long()
    patches = torch.stack([state.object[y : y + 16, x : x + 16] for y, x in corners.tolist()])
    waves = torch.fft.fft2(patches[:, None] * state.probe, norm="ortho")
    return waves.abs().square().sum(1)


@pytest.mark.contract("refine.gradient.exact")
def test_objectives_are_those_of_the_formulas(problem: Problem, scan: Scan) -> None:
    state = make_state(problem, scan)
    state.positions_px = state.positions_px.round()
    index = torch.tensor([3, 7, 20])
    expected = compute_intensity(problem, state, index) + 0.4
    counts = problem.load_counts(index)
    mean = problem.scaling.photons_per_frame / 16**2
    good = problem.mask.expand_as(counts)
    values = (problem, state.object, state.probe, state.positions_px, state.background, index)
    squares = ((expected + 0.5).sqrt() - (counts + 0.5).sqrt()).square()[good]
    assert float(compute_objective(*values, "amplitude")) == pytest.approx(float(2 * squares.mean() / mean), rel=1e-9)
    y, i = (counts[good] + 0.5) / mean, (expected[good] + 0.5) / mean
    deviance = (y * (y / i).log() + i - y).mean()
    assert float(compute_objective(*values, "poisson")) == pytest.approx(float(deviance), rel=1e-6)


def test_misfits_of_frames_and_of_all_are_those_of_their_intensities(problem: Problem, scan: Scan) -> None:
    state = make_state(problem, scan)
    state.positions_px = state.positions_px.round()
    index = torch.tensor([3, 7, 20])
    intensity, counts = compute_intensity(problem, state, index), problem.load_counts(index)
    for background in (0.0, 0.4):
        config = RefineConfig(background=background > 0)
        change = (counts - intensity - background) / (intensity + background + 1) / 2
        here_px = state.positions_px[index]
        found, elsewhere = compute_frame_misfits(problem, state, config, index, torch.stack([here_px, here_px + 0.3]))
        torch.testing.assert_close(found, (intensity * (change.clamp_max(4) * problem.mask).square()).sum((1, 2)))
        assert float((elsewhere - found).abs().min()) > 0
    everything = torch.arange(problem.n_frames)
    expected = compute_intensity(problem, state, everything) + 0.4
    good = problem.mask.expand_as(expected)
    deviation = ((problem.load_counts(everything) - expected).square() / (expected + 1))[good].sum()
    wanted = float(deviation / (expected / (expected + 1))[good].sum())
    assert measure_misfit(problem, state, state.object) == pytest.approx(wanted, rel=1e-9)


def compute_step_lengths(*waves: Tensor | None) -> tuple[Tensor, Tensor]:
    return _solve_step_lengths(_compute_step_products(*waves))  # type: ignore[arg-type]


@pytest.mark.contract("refine.lsqml.monotone")
def test_step_lengths_bring_the_exit_waves_closest() -> None:
    update, patches = normal((5, 4, 4), 0), normal((5, 4, 4), 1)
    probe, probe_change = normal((2, 4, 4), 2), 0.3 * normal((2, 4, 4), 3)
    by_object, by_probe = update[:, None] * probe, patches[:, None] * probe_change
    exit_change = 0.8 * by_object + 0.5 * by_probe + 0.05 * normal((5, 2, 4, 4), 4)
    energies = [torch.view_as_real(part).square().sum((1, 2, 3, 4)) for part in (by_object, by_probe)]
    lengths = []
    for frame in range(5):
        columns = torch.stack([torch.view_as_real(part[frame]).flatten() for part in (by_object, by_probe)], 1)
        # A hundredth of the mean curvature damps both.
        damping = torch.diag(torch.stack([0.01 * energy.mean() for energy in energies]))
        target = torch.view_as_real(exit_change[frame]).flatten()
        lengths.append(torch.linalg.solve(columns.mT @ columns + damping, columns.mT @ target).clamp(0, 2))
    expected = torch.stack(lengths).mean(0)
    found = torch.stack(compute_step_lengths(by_object, by_probe, exit_change))
    torch.testing.assert_close(found, expected)
    # The object alone: one length for all frames.
    alone, none = compute_step_lengths(by_object, None, exit_change)
    slope = (by_object.conj() * exit_change).real.sum() / by_object.abs().square().sum()
    torch.testing.assert_close(alone, slope.clamp(0, 2))
    assert float(none) == 0
    assert float(compute_step_lengths(by_object, None, 5 * by_object)[0]) == 2
    assert float(compute_step_lengths(by_object, None, -by_object)[0]) == 0


def test_a_change_of_the_probe_without_its_scale_keeps_the_power() -> None:
    probe, update = normal((2, 4, 4), 0), normal((2, 4, 4), 1)
    found = _remove_scale(update, probe)
    assert abs(complex((probe.conj() * found).sum())) < 1e-12
    # Only what is along the probe is gone.
    ratio = (update - found) / probe
    torch.testing.assert_close(ratio, ratio[:1, :1, :1].expand_as(ratio))
    torch.testing.assert_close(_remove_scale(1j * probe, probe), torch.zeros_like(probe))


@pytest.mark.parametrize(
    ("n_frames", "batch_size", "expected"),
    [(24, None, 8), (5, None, 5), (400, None, 16), (10_000, None, 64), (24, 10, 10), (7, 10, 7)],
)
def test_batches_suit_the_number_of_frames(n_frames: int, batch_size: int | None, expected: int) -> None:
    assert choose_batch_size(RefineConfig(batch_size=batch_size), n_frames) == expected
    parts = split_into_batches(torch.arange(n_frames), expected)
    assert torch.equal(torch.cat(parts), torch.arange(n_frames))
    assert len(parts) == -(-n_frames // expected)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.contract("refine.start")
@pytest.mark.parametrize("shift_px", [(0, 0), (3, -5), (-4, 2)])
@pytest.mark.parametrize("size_px", [(60, 60), (20, 24)])
def test_a_start_is_taken_where_it_is_valid_and_its_mean_elsewhere(
    problem: Problem, shift_px: tuple[int, int], size_px: tuple[int, int]
) -> None:
    values = (2j + 0.3 * normal(size_px, 5)).to(torch.complex64)
    valid = torch.rand(size_px, generator=torch.Generator().manual_seed(0)) < 0.8
    origin_px = tuple(origin + shift for origin, shift in zip(problem.origin_px, shift_px, strict=True))
    start = Reconstruction(
        object=torch.where(valid, values, torch.nan).numpy(),
        coverage=valid.float().numpy(),
        valid=valid.numpy(),
        origin_px=(origin_px[0], origin_px[1]),
    )
    found = _crop_start_to_canvas(problem, start)
    assert (found.shape, found.dtype) == (problem.shape, torch.complex128)
    rows, columns = (torch.arange(n) - shift for n, shift in zip(problem.shape, shift_px, strict=True))
    known = torch.zeros(problem.shape, dtype=torch.bool)
    expected = torch.zeros(problem.shape, dtype=torch.complex128)
    for i, row in enumerate(rows.tolist()):
        for j, column in enumerate(columns.tolist()):
            if 0 <= row < size_px[0] and 0 <= column < size_px[1] and valid[row, column]:
                known[i, j], expected[i, j] = True, values[row, column]
    mean = expected[known].mean()
    expected[~known] = mean / mean.abs() * expected[known].abs().mean()
    assert bool(known.any())
    torch.testing.assert_close(found, expected)
    away = dataclasses.replace(start, origin_px=(problem.origin_px[0] + 500, problem.origin_px[1]))
    with pytest.raises(ConfigError, match="hold nothing valid"):
        _crop_start_to_canvas(problem, away)


def test_the_gauge_is_that_of_the_beginning() -> None:
    probe = torch.zeros(1, 8, 8, dtype=torch.complex128)
    probe[0, 3:5, 2:4] = 2.0
    state = RefinementState.begin(normal((20, 22), 1), probe, torch.zeros(2, 2).double())
    product = state.object[4:12, 5:13] * state.probe[0]
    names = ("probe", "probe_velocity", "probe_anchor", "object", "velocity", "anchor")
    for number, name in enumerate(names):
        tensor = getattr(state, name) if name in ("probe", "object") else normal(getattr(state, name).shape, number)
        # Twice as bright, and moved by (2, -1) px.
        factor = 2.0 if "probe" in name else 0.5
        setattr(state, name, torch.roll(tensor * factor, (2, -1), (-2, -1)))
    before = {name: getattr(state, name).clone() for name in names}
    state.fix_gauge()
    torch.testing.assert_close(state.probe, probe)
    torch.testing.assert_close(state.object[4:12, 5:13] * state.probe[0], product)
    for name in names:
        factor = 0.5 if "probe" in name else 2.0
        torch.testing.assert_close(getattr(state, name), torch.roll(before[name], (-2, 1), (-2, -1)) * factor)
