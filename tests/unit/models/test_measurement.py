"""What the model of the experiment can hold: modes, a confined probe, scale, blur, background, absolute scale."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import make_asymmetric_probe, normal
from test_lightning_module import SMALL, made, run_config, scan
from tolerances import assert_close, relative_l2
from torch import Tensor

from torchptycho.core.config import ExperimentConfig, LossConfig
from torchptycho.core.errors import ConfigError, StoreError
from torchptycho.core.scan import ArrayFrames
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.physics.diffraction import far_field, measurement
from torchptycho.physics.overlap import central_weight, merge, merge_canvas_px, probe_weight
from torchptycho.physics.patches import extract, locate_corner, place
from torchptycho.physics.probe_constraints import scale_probe_power, smoothing_envelope, soft_disc
from torchptycho.reconstructors.absolute_scale import ScaleStatistics

N = 32
# A network that does not look at the probe: what the default one makes of it is not part of the gradient.
TRAINABLE = dataclasses.replace(SMALL, generator="constant_generator:Constant", probe_trainable=True)


def gradients(module: PtychoPINN, batch: Any) -> dict[str, Tensor]:
    module.zero_grad()
    module._evaluate_loss(batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def moved(module: PtychoPINN, batch: Any, steps: int = 3) -> PtychoPINN:
    """The module after some steps of plain descent on everything but the network."""
    rest = [p for name, p in module.named_parameters() if not name.startswith("generator") and p.requires_grad]
    optimizer = torch.optim.Adam(rest, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        module._evaluate_loss(batch)["loss"].backward()
        optimizer.step()
    return module


class TestModes:
    @pytest.mark.contract("train.modes")
    def test_every_mode_of_a_trainable_probe_has_the_gradient_of_finite_differences(self, tmp_path: Path) -> None:
        module, batch = made(tmp_path, run_config(model=TRAINABLE), scans=scan(probe_modes=3), groups=3)
        assert module.probe.shape == (1, 3, N, N)
        pull = gradients(module, batch)["probe_parts"][0]
        for mode in range(3):
            direction = torch.zeros_like(module.probe_parts)
            direction[0, mode] = pull[mode] / pull[mode].norm()
            step = 1e-2 * float(module.probe_parts[0, mode].detach().norm())
            losses = []
            for sign in (1, -1):
                shifted = made_like(module, direction * sign * step)
                losses.append(float(shifted._evaluate_loss(batch)["loss"]))
            slope = (losses[0] - losses[1]) / (2 * step)
            assert slope > 0
            assert slope == pytest.approx(float(pull[mode].norm()), rel=0.05)  # differences of float32 sums


def made_like(module: PtychoPINN, change: Tensor) -> PtychoPINN:
    other = PtychoPINN(**dict(module.hparams))
    other.load_state_dict(module.state_dict())
    other.probe_parts.data += change
    return other


class TestProbe:
    @pytest.mark.contract("train.probe.power")
    def test_fixed_power_is_kept_while_the_probe_moves(self, tmp_path: Path) -> None:
        config = run_config(model=TRAINABLE, experiment=ExperimentConfig(probe_power="fixed"))
        module, batch = made(tmp_path, config, groups=3)
        before = module.probe.detach().clone()
        module = moved(module, batch, steps=5)
        module.probe_parts.data *= 1.5
        assert relative_l2(module.probe.detach(), before) > 1e-4
        assert_close(module.probe.abs().square().sum(), before.abs().square().sum(), "single")

    @pytest.mark.contract("train.probe.support")
    def test_probe_is_dark_outside_its_support_and_whole_inside(self, tmp_path: Path) -> None:
        config = run_config(model=TRAINABLE, experiment=ExperimentConfig(probe_support_px=16, probe_support_edge_px=4))
        module, batch = made(tmp_path, config, groups=3)
        module = moved(module, batch)
        steps = torch.arange(N) - N // 2
        radius = torch.hypot(steps[:, None].double(), steps[None].double())
        free = torch.view_as_complex(module.probe_parts.detach())[0]
        assert float(module.probe[0][:, radius > 10].abs().max()) == 0
        assert torch.equal(module.probe[0][:, radius < 6], free[:, radius < 6])
        assert float(free[:, radius > 12].abs().max()) > 0

    @pytest.mark.contract("physics.beam.support")
    @pytest.mark.parametrize("edge_px", [0.0, 3.0])
    def test_soft_disc_is_symmetric_and_half_at_its_radius(self, edge_px: float) -> None:
        disc = soft_disc(N, 20, edge_px)
        assert torch.equal(disc, disc.T)
        assert torch.equal(disc[1:], disc[1:].flip(0))
        row = disc[N // 2]
        assert float(row[N // 2]) == 1
        assert float(row[N // 2 + 10]) == pytest.approx(0.5 if edge_px else 0.0, abs=1e-6)
        assert float(row[N // 2 + 12]) == 0

    @pytest.mark.contract("train.probe.power")
    def test_power_of_all_modes_together_is_set(self) -> None:
        probe = make_asymmetric_probe(N, modes=3, photons=7.0)
        found = scale_probe_power(probe[None], torch.tensor([100.0]))
        assert float(found.abs().square().sum()) == pytest.approx(100)
        assert_close(found[0], probe * math.sqrt(100 / 7), "single")

    @pytest.mark.contract("train.refuse")
    @pytest.mark.parametrize(
        ("model", "experiment"),
        [(TRAINABLE, ExperimentConfig()), (SMALL, ExperimentConfig(scale_trainable=True))],
    )
    def test_what_only_the_detector_tells_is_not_learnt_from_labels(
        self, tmp_path: Path, model: Any, experiment: ExperimentConfig
    ) -> None:
        supervised = LossConfig(nll_weight=0, realspace_weight=1)
        with pytest.raises(ConfigError, match="depends on the detector"):
            made(tmp_path, run_config(model=model, experiment=experiment, loss=supervised))


class TestDetector:
    @pytest.mark.contract("train.scale")
    def test_scale_of_each_scan_is_a_parameter_that_moves_by_itself(self, tmp_path: Path) -> None:
        config = run_config(experiment=ExperimentConfig(scale_trainable=True))
        module, batch = made(tmp_path, config, scans=[scan(), scan(simulation_seed=1)], groups=3)
        assert "experiment.log_scale" in dict(module.named_parameters())
        scale = moved(module, batch).experiment.scale
        assert scale is not None
        # The first groups are of the first scan.
        assert abs(float(scale[0]) - 1) > 1e-3
        assert float(scale[1]) == 1
        patches = torch.ones(batch.frames.shape, dtype=torch.complex64)
        bare, _ = made(tmp_path / "bare", scans=[scan(), scan(simulation_seed=1)])
        ratio = (
            module.compute_expected_counts(patches, batch).sum() / bare.compute_expected_counts(patches, batch).sum()
        )
        assert float(ratio) == pytest.approx(float(scale[0]), rel=1e-5)

    @pytest.mark.contract("train.background")
    def test_constant_background_is_added_and_is_not_learnt(self, tmp_path: Path) -> None:
        module, batch = made(tmp_path, run_config(experiment=ExperimentConfig(background_counts=2.5)))
        patches = torch.ones(batch.frames.shape, dtype=torch.complex64)
        added = module.compute_expected_counts(patches, batch) - module.compute_expected_counts(
            patches, batch, background=False
        )
        assert_close(added, torch.full_like(added, 2.5), "single_fft")
        assert not list(module.experiment.parameters())

    @pytest.mark.contract("train.background")
    @pytest.mark.parametrize("first", [0.0, 3.0])
    def test_learnt_background_begins_where_told_stays_positive_and_finds_the_counts(
        self, tmp_path: Path, first: float
    ) -> None:
        # The object of a network that begins with nothing: that of the default one fits most of a background away.
        config = run_config(
            model=dataclasses.replace(SMALL, generator="resunet"),
            experiment=ExperimentConfig(background_trainable=True, background_counts=first),
        )
        given = scan()
        bright = dataclasses.replace(given, frames=type(given.frames)(given.frames[:] + np.uint16(20)))
        module, batch = made(tmp_path, config, scans=bright)
        start = float(module.experiment.background)  # type: ignore[arg-type]
        dark = np.sort(bright.frames[:].mean(0).ravel())[: N * N // 64].mean()
        assert dark >= 20
        assert start == pytest.approx(first or dark, rel=1e-5)
        assert batch.truth is None
        optimizer = torch.optim.Adam(module.experiment.parameters(), lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            module._evaluate_loss(batch)["loss"].backward()
            optimizer.step()
        # The network has learnt nothing, so the background takes some of its part; it is the order that counts.
        assert 10 < float(module.experiment.background) < 60  # type: ignore[arg-type]

    @pytest.mark.contract("train.background")
    @pytest.mark.parametrize("domain", ["counts", "amplitude"])
    def test_a_learnt_background_begins_at_the_floor_in_photons_and_under_no_mask(
        self, tmp_path: Path, domain: str
    ) -> None:
        given = scan()
        frames = given.frames[:].astype(np.float32) + 20
        mask = np.ones((N, N), bool)
        mask[3, :5] = False
        frames[:, 3, :5] = 0
        if domain == "amplitude":
            photons = float(frames.sum(axis=(1, 2)).mean())
            changed = dataclasses.replace(
                given,
                frames=ArrayFrames(np.sqrt(frames) / 7),
                domain="amplitude",
                mask=mask,
                metadata={"nphotons": photons},
            )
        else:
            changed = dataclasses.replace(given, frames=ArrayFrames(frames), mask=mask)
        module, _ = made(tmp_path, run_config(experiment=ExperimentConfig(background_trainable=True)), scans=changed)
        # Photons of amplitudes are those of the frames that are trained on.
        dark = np.sort(frames.mean(0)[mask])[: int(mask.sum()) // 64].mean()
        assert float(module.experiment.background) == pytest.approx(dark, rel=1e-2)  # type: ignore[arg-type]

    @pytest.mark.contract("train.background")
    def test_without_light_in_the_dark_a_learnt_background_begins_with_a_little(self, tmp_path: Path) -> None:
        given = scan()
        frames = given.frames[:].copy()
        frames[:, :4] = 0
        dark = dataclasses.replace(given, frames=ArrayFrames(frames))
        module, _ = made(tmp_path, run_config(experiment=ExperimentConfig(background_trainable=True)), scans=dark)
        mean = float(module.photons_per_frame[0]) / N**2
        assert float(module.experiment.background) == pytest.approx(1e-3 * mean, rel=1e-5)  # type: ignore[arg-type]

    @pytest.mark.contract("physics.beam.smoothing")
    def test_envelope_is_a_gaussian_blur_of_the_exit_wave(self) -> None:
        wave, sigma = normal((1, N, N), 3), 1.5
        steps = torch.arange(N, dtype=torch.float64) - N // 2
        images = torch.arange(-3, 4) * N
        # A Gaussian on the torus, sampled: of sum 1 to the rounding, as it is narrow and well resolved.
        line = torch.exp(-((steps[:, None] + images) ** 2) / (2 * sigma**2)).sum(1)
        kernel = (line[:, None] * line / line.sum() ** 2).to(torch.complex128)
        rolled = torch.fft.ifftshift(kernel, dim=(-2, -1))
        blurred = torch.fft.ifft2(torch.fft.fft2(wave) * torch.fft.fft2(rolled))
        expected = measurement(far_field(blurred)[None]).float()
        found = measurement(far_field(wave)[None]).float() * smoothing_envelope(N, sigma)
        # The Fourier transform of a sampled Gaussian is one up to its tail beyond the Nyquist frequency.
        assert relative_l2(found, expected) < 1e-3

    @pytest.mark.contract("train.smoothing")
    def test_smoothing_dims_the_edge_of_the_detector_and_not_its_centre(self, tmp_path: Path) -> None:
        plain, batch = made(tmp_path / "plain")
        module, _ = made(tmp_path, run_config(experiment=ExperimentConfig(exit_smoothing_px=0.7)))
        patches = torch.ones(batch.frames.shape, dtype=torch.complex64)
        ratio = (module.compute_expected_counts(patches, batch) / plain.compute_expected_counts(patches, batch))[0, 0]
        assert float(ratio[N // 2, N // 2]) == pytest.approx(1, rel=1e-5)
        assert float(ratio[N // 2, 0]) == pytest.approx(math.exp(-4 * math.pi**2 * 0.49 * 0.25), rel=1e-4)

    @pytest.mark.contract("train.experiment.off")
    def test_nothing_is_there_unless_it_is_asked_for(self, tmp_path: Path) -> None:
        module, batch = made(tmp_path)
        assert not module.experiment.state_dict()
        assert not list(module.experiment.buffers())
        counts = torch.rand(batch.frames.shape)
        assert module.experiment.apply_to_counts(counts, batch.scan) is counts


class TestMerging:
    @pytest.mark.contract("physics.merge.full-canvas")
    @pytest.mark.parametrize("kind", ["probe", "central"])
    def test_merging_is_placing_every_patch_on_a_full_canvas_one_by_one(self, kind: str) -> None:
        n_px, members = 16, 4
        patches = normal((3, members, n_px, n_px), 5)
        offset_px = (
            torch.rand(3, members, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
        ) * 9
        weight = probe_weight(make_asymmetric_probe(n_px)) if kind == "probe" else central_weight(n_px, patches)
        size = merge_canvas_px(n_px, 4.5)
        for group in range(3):
            corners = locate_corner(offset_px[group], n_px, (-(size // 2), -(size // 2)))
            total = torch.zeros(size, size, dtype=torch.complex128)
            covered = torch.zeros(size, size, dtype=torch.float64)
            for member in range(members):
                one = corners[member : member + 1]
                total += place((patches[group, member] * weight)[None], one, (size, size))
                covered += place(weight[None].contiguous(), one, (size, size))
            expected = extract(total / covered.clamp_min(1e-6), corners, n_px)
            found = merge(patches, offset_px, weight, size)[group]
            assert_close(found, expected, "double")


class TestAbsoluteScale:
    @staticmethod
    def frames(seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        expected = 50 * torch.rand(40, 1, 8, 8, generator=generator).square()
        return expected, torch.ones(40, 1, 8, 8, dtype=torch.bool)

    @pytest.mark.contract("predict.absolute")
    def test_scale_and_background_are_found_from_parts_in_any_order(self) -> None:
        expected, good = self.frames()
        counts = 2.25 * expected + 3
        statistics = ScaleStatistics()
        for rows in (slice(20, 40), slice(0, 7), slice(7, 20)):
            statistics.add(expected[rows], counts[rows], good[rows])
        found = statistics.solve()
        assert found.object_factor == pytest.approx(1.5, rel=1e-6)
        assert found.background_counts == pytest.approx(3, rel=1e-5)

    @pytest.mark.contract("predict.absolute")
    def test_noise_leaves_the_least_squares_solution_and_a_background_is_never_negative(self) -> None:
        expected, good = self.frames()
        noisy = torch.poisson(2.25 * expected + 3, generator=torch.Generator().manual_seed(1))
        statistics = ScaleStatistics()
        statistics.add(expected, noisy, good)
        root = (1 / (expected.double().flatten() + 0.5)).sqrt().numpy()
        columns = np.stack([expected.double().flatten().numpy(), np.ones(root.size)], 1) * root[:, None]
        [alpha, beta], *_ = np.linalg.lstsq(columns, noisy.double().flatten().numpy() * root, rcond=None)
        found = statistics.solve()
        assert found.object_factor**2 == pytest.approx(alpha, rel=1e-6)
        assert found.background_counts == pytest.approx(beta, rel=1e-6)
        darker = ScaleStatistics()
        darker.add(expected, (2 * expected - 1).clamp_min(0), good)
        assert darker.solve().background_counts == 0

    @pytest.mark.contract("predict.absolute")
    def test_masked_pixels_do_not_count_and_darkness_has_no_scale(self) -> None:
        expected, good = self.frames()
        good[:, :, :, 3] = False
        counts = torch.where(good, 4 * expected, torch.nan)
        statistics = ScaleStatistics()
        statistics.add(expected, counts, good)
        assert statistics.solve().object_factor == pytest.approx(2, rel=1e-6)
        with pytest.raises(StoreError, match="positive factor"):
            ScaleStatistics().solve()
