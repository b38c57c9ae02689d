"""Refinement of a thick object in slices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import assert_close

from torchptycho.analysis.comparison import compare
from torchptycho.analysis.evaluation import evaluate, evaluate_slices
from torchptycho.cli.app import main
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, EvaluationError
from torchptycho.core.geometry import Geometry
from torchptycho.core.reconstruction import Reconstruction, project_slices
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction, write_reconstruction, write_tiff
from torchptycho.reconstructors.iterative import estimate_uncertainty, refine
from torchptycho.reconstructors.iterative.plan import plan_refinement
from torchptycho.reconstructors.iterative.thick_object import (
    balance_slices,
    check_slices,
    smooth_slices,
    split_into_slices,
)
from torchptycho.visualization.plot import plot_reconstruction
from torchptycho.visualization.report import write_refinement_report

SPACING_M = 1.7e-5
"""Four times the depth of focus."""
EXPERIMENT: dict[str, Any] = {
    "n_px": 32, "object_px": 76, "n_frames": 60, "n_slices": 2, "slice_spacing_m": SPACING_M, "amplitude_min": 0.8,
    "phase_range_rad": 1.0, "probe_defocus_waves": 1.0, "photons_per_frame": 1e6, "simulation_seed": 2,
}  # fmt: skip
THICK = RefineConfig(n_slices=2, slice_spacing_m=SPACING_M, epochs=30, patience=None)
QUICK = dataclasses.replace(THICK, epochs=4)


@pytest.fixture(scope="module")
def thick() -> Scan:
    given = simulate(SimulateConfig(**EXPERIMENT))
    return simulate(SimulateConfig(**EXPERIMENT), positions_px=np.rint(given.positions_px))


@pytest.fixture(scope="module")
def image(thick: Scan) -> Reconstruction:
    return refine(thick, config=THICK, device="cpu")


def correlate(image: Reconstruction, scan: Scan) -> list[float]:
    return [each.phase_correlation for each in evaluate_slices(image, scan)]


class TestImage:
    @pytest.mark.contract("refine.slices")
    @pytest.mark.parametrize(("method", "epochs", "least"), [("lsqml", 30, 0.97), ("gradient", 20, 0.85)])
    def test_every_method_finds_the_slices(self, thick: Scan, method: Any, epochs: int, least: float) -> None:
        found = refine(thick, config=dataclasses.replace(THICK, method=method, epochs=epochs), device="cpu")
        assert min(correlate(found, thick)) > least
        assert found.history["misfit"][-1] < (1.3 if method == "lsqml" else 3)

    @pytest.mark.contract("refine.slices")
    def test_one_slice_does_not_explain_the_counts(self, thick: Scan, image: Reconstruction) -> None:
        thin = refine(thick, config=RefineConfig(epochs=10, patience=None), device="cpu", judge=False)
        assert thin.history["misfit"][-1] > 5
        assert image.history["misfit"][-1] < 1.1
        assert min(correlate(image, thick)) > 0.97
        assert image.slice_spacing_m == SPACING_M
        # They differ: each is nearer to its own truth than to the other's.
        assert thick.truth_slices is not None
        swapped = dataclasses.replace(thick, truth_slices=thick.truth_slices[::-1].copy())
        assert max(correlate(image, swapped)) < 0.5

    @pytest.mark.contract("refine.slices.combined")
    def test_slices_combine_with_what_else_is_fitted(self, thick: Scan) -> None:
        mask = np.ones((32, 32), bool)
        mask[5, 7] = mask[20, :2] = False
        frames = np.where(mask, thick.frames[:] + np.uint32(2), 9999).astype(np.uint16)
        scan = dataclasses.replace(thick, frames=ArrayFrames(frames), mask=mask)
        more: dict[str, Any] = {"n_modes": 2, "opr_modes": 1, "frame_scale": True, "opr_start_epoch": 4}
        more |= {"regularization": "tv", "regularization_strength": 0.05, "tv_weight": 0.0, "background": True}
        found = refine(scan, config=dataclasses.replace(THICK, epochs=20, **more), device="cpu")
        assert found.object.shape[0] == 2
        assert min(correlate(found, thick)) > 0.9
        assert found.background is not None
        assert np.median(found.background) == pytest.approx(2, abs=0.7)

    @pytest.mark.contract("refine.slices.combined")
    def test_slices_of_near_field_images_are_found(self) -> None:
        config = SimulateConfig(
            **{**EXPERIMENT, "n_frames": 30, "propagation": "near", "slice_spacing_m": 1e-3, "probe_defocus_waves": 0.5}
        )
        scan = simulate(config)
        given = dataclasses.replace(QUICK, slice_spacing_m=1e-3, epochs=15)
        found = refine(scan, config=given, device="cpu")
        thin = refine(
            scan, config=dataclasses.replace(given, n_slices=1, slice_spacing_m=None), device="cpu", judge=False
        )
        assert found.history["misfit"][-1] < 0.7 * thin.history["misfit"][-1]

    @pytest.mark.contract("refine.slices.positions")
    @pytest.mark.parametrize(("method", "epochs", "part"), [("rpie", 40, 0.35), ("gradient", 15, 0.7)])
    def test_positions_are_corrected_through_all_slices(
        self, thick: Scan, method: Any, epochs: int, part: float
    ) -> None:
        rng = np.random.default_rng(0)
        off = rng.uniform(-1, 1, thick.positions_px.shape)
        moved = dataclasses.replace(thick, positions_px=thick.positions_px + off)
        given = dataclasses.replace(
            THICK, method=method, epochs=epochs, position_update="frames", position_start_epoch=3
        )
        found = refine(moved, config=given, device="cpu")
        assert found.positions_px is not None
        left = found.positions_px - thick.positions_px
        before = np.sqrt(np.square(off - off.mean(0)).mean())
        assert np.sqrt(np.square(left - left.mean(0)).mean()) < part * before

    @pytest.mark.contract("refine.slices.thin")
    def test_one_slice_is_a_thin_object(self, thick: Scan, tmp_path: Path) -> None:
        thin = refine(thick, config=RefineConfig(epochs=2), device="cpu", judge=False, state_file=tmp_path / "s.npz")
        assert thin.object.ndim == 2
        assert thin.slice_spacing_m is None
        write_reconstruction(thin, tmp_path / "thin.npz")
        with np.load(tmp_path / "thin.npz") as arrays:
            assert "slice_spacing_m" not in arrays
            assert arrays["object"].ndim == 2
        with np.load(tmp_path / "s.npz") as arrays:
            assert arrays["object"].ndim == 2

    @pytest.mark.contract("refine.slices.resume")
    def test_resumed_refinement_goes_on(self, thick: Scan, tmp_path: Path) -> None:
        file = tmp_path / "state.npz"
        whole = refine(thick, config=dataclasses.replace(QUICK, polish=0), device="cpu")
        refine(thick, config=dataclasses.replace(QUICK, polish=0, epochs=2), device="cpu", state_file=file)
        found = refine(thick, config=dataclasses.replace(QUICK, polish=0), device="cpu", state_file=file, resume=True)
        np.testing.assert_array_equal(found.object, whole.object)


class TestStart:
    @pytest.mark.contract("refine.slices.start")
    def test_slices_begin_as_roots(self) -> None:
        rng = np.random.default_rng(1)
        object = torch.from_numpy((0.5 + rng.random((5, 6))) * np.exp(2.5j * (rng.random((5, 6)) - 0.5)))
        slices = split_into_slices(object, 3)
        assert_close(slices.prod(0), object, "double")
        assert torch.equal(slices[0], slices[2])
        assert float(slices[0].angle().abs().max()) < 1.25 / 3
        assert split_into_slices(object, 1) is object

    @pytest.mark.contract("refine.slices.start")
    def test_slices_begin_from_an_image(self, thick: Scan, image: Reconstruction) -> None:
        again = refine(thick, image, config=dataclasses.replace(QUICK, epochs=1), device="cpu")
        assert min(correlate(again, thick)) > 0.95
        refine(thick, project_slices(image), config=dataclasses.replace(QUICK, epochs=1), device="cpu")
        for n_slices, spacing_m in ((3, SPACING_M), (1, None)):
            config = dataclasses.replace(QUICK, n_slices=n_slices, slice_spacing_m=spacing_m)
            with pytest.raises(ConfigError, match=f"start: .*n_slices, {n_slices}; found one of 2"):
                refine(thick, image, config=config, device="cpu")

    @pytest.mark.contract("refine.slices.refused")
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                {"slice_spacing_m": None},
                "n_slices: expected slice_spacing_m or thickness_m .*depth of focus is 4.19e-06 m",
            ),
            ({"thickness_m": 1e-5}, "found both"),
            ({"n_slices": 1}, "slice_spacing_m: expected none for a thin object"),
            ({"n_slices": 1, "slice_spacing_m": None, "slice_smoothing": 0.1}, "slice_smoothing: expected none"),
            ({"regularization": "learned"}, "regularization: expected tv, none or auto with 2 slices"),
            ({"regularization": "tv"}, "regularization_strength: expected a number with tv and 2 slices"),
            ({"position_search_px": 4.0, "position_update": "frames"}, "position_search_px: expected 0 with 2 slices"),
        ],
    )
    def test_what_contradicts_is_refused(self, thick: Scan, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            refine(thick, config=dataclasses.replace(THICK, **options), device="cpu")
        with pytest.raises(ConfigError, match=words):
            plan_refinement(thick, dataclasses.replace(THICK, **options), device="cpu")

    @pytest.mark.contract("refine.slices.refused")
    def test_weights_of_the_learnt_prior_are_refused(self, thick: Scan) -> None:
        with pytest.raises(ConfigError, match=r"prior_weights: expected none with 2 slices; found mine\.safetensors"):
            check_slices(dataclasses.replace(THICK, prior_weights="mine.safetensors"), thick)

    @pytest.mark.contract("refine.slices.far")
    def test_light_that_leaves_the_frames_is_warned_of(self, thick: Scan, caplog: pytest.LogCaptureFixture) -> None:
        largest_m = 32 * 1e-16 / thick.geometry.wavelength_m  # type: ignore[operator]
        for factor in (0.99, 1.01):
            caplog.clear()
            config = dataclasses.replace(THICK, slice_spacing_m=factor * largest_m, epochs=1)
            found = refine(thick, config=config, device="cpu")
            for said in (caplog.text, " ".join(found.provenance["warnings"])):
                assert ("slice_spacing_m: light of large angles leaves the frames" in said) == (factor > 1)

    @pytest.mark.contract("refine.slices.refused")
    def test_lengths_that_are_missing_are_named(self, thick: Scan) -> None:
        for known, option in ((Geometry(), "--energy-eV"), (Geometry(energy_eV=1e4), "--object-pixel-m")):
            with pytest.raises(ConfigError, match=option):
                refine(dataclasses.replace(thick, geometry=known), config=THICK, device="cpu")

    @pytest.mark.contract("refine.slices.refused")
    def test_uncertainty_is_refused(
        self, image: Reconstruction, thick: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(ConfigError, match="thin object; found 2 slices"):
            estimate_uncertainty(image, thick, device="cpu")
        flags = ["refine", "scan.npz", "--out", f"{tmp_path}/out.npz", "--n-slices", "2", "--uncertainty", "fisher"]
        assert main(flags) == 1
        assert "--uncertainty: expected one slice; found --n-slices 2" in capsys.readouterr().err

    @pytest.mark.contract("refine.slices.refused")
    def test_no_prior_is_chosen(self, image: Reconstruction, thick: Scan) -> None:
        assert image.provenance["regularization"]["kind"] == "none"
        by_thickness = dataclasses.replace(QUICK, slice_spacing_m=None, thickness_m=SPACING_M, epochs=1)
        assert refine(thick, config=by_thickness, device="cpu").slice_spacing_m == SPACING_M
        assert (
            plan_refinement(thick, THICK, "cpu")["canvas_bytes"]
            == 2 * plan_refinement(thick, RefineConfig(), "cpu")["canvas_bytes"]
        )


class TestForm:
    @pytest.mark.contract("refine.slices.balance")
    def test_slices_have_one_mean_and_the_same_product(self) -> None:
        rng = np.random.default_rng(2)
        slices = (1 + 0.2 * rng.standard_normal((3, 8, 8)) + 0.2j * rng.standard_normal((3, 8, 8))).astype(np.complex64)
        factors = np.array([2 * np.exp(1j), 0.5 * np.exp(-2j), np.exp(0.3j)])
        found = balance_slices((slices * factors[:, None, None]).astype(np.complex64), np.ones((8, 8), bool))
        np.testing.assert_allclose(found.prod(0), slices.prod(0) * factors.prod(), rtol=1e-4)
        phases = np.angle(found.mean((1, 2)))
        assert np.ptp(phases) < 1e-4
        sizes = np.sqrt((np.abs(found) ** 2).mean((1, 2)))
        assert np.ptp(sizes) < 1e-4

    @pytest.mark.contract("refine.slices.smoothing")
    def test_smoothing_reduces_slow_differences_of_slices_alone(self, thick: Scan) -> None:
        probe = torch.from_numpy(thick.probe)
        y = torch.arange(48) / 48
        waves = {cycles: torch.cos(2 * torch.pi * cycles * y)[:, None].expand(-1, 48) for cycles in (1, 20)}
        for cycles, wave in waves.items():
            for sign in (1, -1):
                slices = torch.stack([wave, sign * wave]).to(torch.complex64)
                found = smooth_slices(slices, probe, 20.0, 1.0)
                kept = float((found * slices.conj()).sum().real / slices.abs().square().sum())
                if sign == 1:
                    assert kept == pytest.approx(1, abs=1e-5)
                else:
                    assert kept < 0.3 if cycles == 1 else kept > 0.8
        half = smooth_slices(slices, probe, 20.0, 0.5)
        assert_close(2 * half - slices, found, "single_fft")

    @pytest.mark.contract("refine.slices.smoothing")
    def test_smoothing_acts_in_refinement(self, thick: Scan, image: Reconstruction) -> None:
        found = refine(thick, config=dataclasses.replace(THICK, slice_smoothing=1.0, epochs=10), device="cpu")
        low = [
            abs(np.fft.fft2(each[0] - each[1])[1, 0])
            for each in (found.object[:, 20:50, 20:50], image.object[:, 20:50, 20:50])
        ]
        assert low[0] < low[1]


class TestFiles:
    @pytest.mark.contract("files.slices.image")
    def test_slices_are_read_back(self, image: Reconstruction, thick: Scan, tmp_path: Path) -> None:
        write_reconstruction(image, tmp_path / "image.npz")
        found = read_reconstruction(tmp_path / "image.npz")
        np.testing.assert_array_equal(found.object, image.object)
        np.testing.assert_array_equal(found.coverage, image.coverage)
        assert found.slice_spacing_m == SPACING_M
        amplitude, _ = write_tiff(image, tmp_path / "image.tif")
        import tifffile

        np.testing.assert_array_equal(
            tifffile.imread(amplitude)[:, image.valid], np.abs(image.object)[:, image.valid].astype(np.float32)
        )
        assert plot_reconstruction(image, tmp_path / "image.png").stat().st_size > 10_000

    @pytest.mark.contract("evaluation.slices")
    def test_product_and_slices_are_evaluated(self, image: Reconstruction, thick: Scan) -> None:
        whole = evaluate(image, thick)
        assert whole.phase_correlation > 0.97
        assert whole.complex_nrmse == evaluate(project_slices(image), thick).complex_nrmse
        assert compare(image, project_slices(image)).metrics["B against A"].complex_nrmse < 1e-5
        assert evaluate_slices(project_slices(image), thick) == []
        with pytest.raises(EvaluationError, match="expected 3 slices"):
            evaluate_slices(dataclasses.replace(image, object=image.object[[0, 1, 1]]), thick)

    @pytest.mark.contract("refine.slices.report")
    def test_report_shows_each_slice(self, image: Reconstruction, thick: Scan, tmp_path: Path) -> None:
        page = write_refinement_report(image, thick, tmp_path / "report.html", THICK)
        text = page.read_text(encoding="utf-8")
        for words in ("Phase of slice 1", "Amplitude of slice 2", "4.05 times the depth of focus", "Slice 2"):
            assert words in text, words
        # Patterns are predicted through both slices.
        from torchptycho.visualization.report.pattern_panels import compare_patterns

        patterns = compare_patterns(thick, image, image.probe)
        squared = (patterns.measured - patterns.expected) ** 2 / (patterns.expected + 1)
        assert squared.sum() / (patterns.expected / (patterns.expected + 1)).sum() < 1.3
