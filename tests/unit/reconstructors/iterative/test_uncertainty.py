"""Error bars of refined images."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction, write_reconstruction
from torchptycho.reconstructors.iterative import estimate_uncertainty, refine, uncertainty
from torchptycho.reconstructors.iterative.uncertainty import MAX_PHASE_SIGMA_RAD
from torchptycho.visualization.report.uncertainty_section import make_uncertainty_section


@functools.cache
def make_image() -> tuple[Scan, Reconstruction]:
    """A scan of many photons, and its refinement with a probe that is refined too."""
    config = SimulateConfig(n_px=32, object_px=56, n_frames=60, photons_per_frame=1e6, simulation_seed=2)
    scan = simulate(config)
    return scan, refine(scan, config=RefineConfig(epochs=30, regularization="none"), device="cpu")


@functools.cache
def estimate(method: str) -> Reconstruction:
    scan, image = make_image()
    return estimate_uncertainty(image, scan, method=method, device="cpu")  # type: ignore[arg-type]


@pytest.mark.contract("refine.uncertainty")
@pytest.mark.contract("evaluation.within-sigma")
@pytest.mark.parametrize("method", ["bootstrap", "fisher"])
def test_truth_is_within_one_sigma_at_about_two_thirds_of_the_pixels(method: str) -> None:
    scan, image = make_image()
    metrics = evaluate(estimate(method), scan)
    assert metrics.amplitude_within_sigma is not None
    assert metrics.phase_within_sigma is not None
    # Errors of neighbours go together, so that the part of a small image scatters by 0.05.
    assert 0.55 < metrics.amplitude_within_sigma < 0.81
    assert 0.55 < metrics.phase_within_sigma < 0.81
    assert metrics.complex_nrmse == evaluate(image, scan).complex_nrmse
    assert evaluate(image, scan).amplitude_within_sigma is None


@pytest.mark.contract("evaluation.within-sigma")
def test_error_bars_that_are_too_small_or_large_are_seen() -> None:
    scan, _ = make_image()
    image = estimate("fisher")
    assert image.amplitude_sigma is not None
    for factor, low, high in ((0.2, 0.0, 0.3), (5.0, 0.97, 1.0)):
        metrics = evaluate(dataclasses.replace(image, amplitude_sigma=image.amplitude_sigma * factor), scan)
        assert metrics.amplitude_within_sigma is not None
        assert low < metrics.amplitude_within_sigma <= high


@pytest.mark.contract("refine.uncertainty.measured")
def test_pixels_that_were_not_measured_have_no_error_bar() -> None:
    _, image = make_image()
    found = estimate("fisher")
    assert found.amplitude_sigma is not None
    assert found.phase_sigma_rad is not None
    assert np.isnan(found.amplitude_sigma[~image.valid]).all()
    assert np.isfinite(found.amplitude_sigma[image.coverage > 0.1]).all()
    assert np.array_equal(np.isnan(found.amplitude_sigma), np.isnan(found.phase_sigma_rad))
    assert np.nanmax(found.phase_sigma_rad) <= MAX_PHASE_SIGMA_RAD
    edge = (image.coverage > 0.1) & (image.coverage < 0.2)
    assert np.median(found.amplitude_sigma[edge]) > 1.5 * np.median(found.amplitude_sigma[image.coverage > 0.7])


@pytest.mark.contract("refine.uncertainty.misfit")
def test_error_bars_grow_with_the_root_of_what_the_noise_does_not_explain() -> None:
    scan, image = make_image()
    worse = dataclasses.replace(image, history={"misfit": [4.0]})
    found, plain = estimate_uncertainty(worse, scan, method="fisher", device="cpu"), estimate("fisher")
    assert found.provenance["uncertainty"]["excess_of_misfit"] == 4.0
    assert found.amplitude_sigma is not None
    assert plain.amplitude_sigma is not None
    assert np.allclose(found.amplitude_sigma, 2 * plain.amplitude_sigma, equal_nan=True)
    assert plain.provenance["uncertainty"]["excess_of_misfit"] == 1.0


@pytest.mark.contract("refine.uncertainty.few-photons")
def test_few_photons_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    scan, image = make_image()
    assert image.probe is not None
    assert estimate("fisher").provenance["uncertainty"]["reliable"]
    with caplog.at_level("WARNING"):
        dim = dataclasses.replace(image, probe=image.probe * np.float32(0.02))
        found = estimate_uncertainty(dim, scan, method="fisher", device="cpu")
    assert not found.provenance["uncertainty"]["reliable"]
    assert "photons pass an object pixel" in caplog.text
    section = make_uncertainty_section(found)
    assert section is not None
    assert "photons pass an object pixel" in section.warnings[0]


@pytest.mark.contract("refine.uncertainty.files")
def test_error_bars_are_written_and_read_back(tmp_path: Path) -> None:
    image = estimate("fisher")
    write_reconstruction(image, tmp_path / "image.npz")
    back = read_reconstruction(tmp_path / "image.npz")
    for name in ("amplitude_sigma", "phase_sigma_rad"):
        assert np.array_equal(getattr(back, name), getattr(image, name), equal_nan=True)
    assert back.provenance["uncertainty"] == image.provenance["uncertainty"]


@pytest.mark.contract("refine.uncertainty.refused")
def test_what_is_no_refinement_of_the_scan_is_refused() -> None:
    scan, image = make_image()
    with pytest.raises(ConfigError, match="expected an image by `refine`"):
        estimate_uncertainty(dataclasses.replace(image, probe=None), scan, device="cpu")
    fewer = dataclasses.replace(image, positions_px=scan.positions_px[:-1], given_positions_px=None)
    with pytest.raises(ConfigError, match=r"60 frames of 32 px\); found one of 59"):
        estimate_uncertainty(fewer, scan, device="cpu")
    thick = dataclasses.replace(image, object=np.stack([image.object, image.object]))
    with pytest.raises(ConfigError, match="expected a thin object; found 2 slices"):
        estimate_uncertainty(thick, scan, device="cpu")
    with pytest.raises(ConfigError, match="replicas: expected 1 or more; found 0"):
        estimate_uncertainty(image, scan, replicas=0, device="cpu")


@pytest.mark.contract("refine.uncertainty.few-photons")
def test_a_prior_with_fisher_and_amplitudes_without_a_dose_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    scan, image = make_image()
    prior = {"regularization": {"kind": "tv", "strength": 0.5}}
    refined = dataclasses.replace(image, provenance=image.provenance | prior)
    found = estimate_uncertainty(refined, scan, method="fisher", device="cpu").provenance["uncertainty"]
    assert (found["reliable"], found["limits"]) == (False, ["fisher with a prior"])
    assert "Take bootstrap" in caplog.text
    roots = dataclasses.replace(
        scan, frames=ArrayFrames(np.sqrt(scan.frames[:]).astype(np.float32)), domain="amplitude", metadata={}
    )
    found = estimate_uncertainty(image, roots, method="fisher", device="cpu").provenance["uncertainty"]
    assert (found["reliable"], found["limits"]) == (False, ["no dose"])


@pytest.mark.contract("refine.uncertainty.refused")
def test_an_interrupted_replica_gives_no_error_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, image = make_image()
    stopped = dataclasses.replace(image, provenance=image.provenance | {"complete": False})
    monkeypatch.setattr(uncertainty, "refine", lambda *args, **options: stopped)
    with pytest.raises(KeyboardInterrupt):
        estimate_uncertainty(image, scan, device="cpu")
