"""Refinement with the learnt prior: ahead at low dose, the same at high dose, and no worse where inputs are wrong."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, StoreError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.models.prior import PriorNetwork, load_prior, save_prior
from torchptycho.reconstructors.iterative import prior_steps, refine
from torchptycho.reconstructors.iterative.learned_prior import apply_last_step

QUICK = RefineConfig(epochs=20, probe_update=False, patience=None)
QUICK_PLAIN = dataclasses.replace(QUICK, regularization="none")
LEARNED = dataclasses.replace(QUICK, regularization="learned")


@functools.cache
def make_scan(photons: float = 1e4) -> Scan:
    return simulate(
        SimulateConfig(
            n_px=32, object_px=84, n_frames=60, photons_per_frame=photons, probe_kind="disk", simulation_seed=4
        )
    )


def measure_error(image: Reconstruction, scan: Scan) -> float:
    assert scan.truth is not None
    return evaluate(image, scan.truth).complex_nrmse


def compare_errors(scan: Scan, config: RefineConfig = QUICK, *, truth_of: Scan | None = None) -> tuple[float, float]:
    """Return the error without and with the prior."""
    learned = dataclasses.replace(config, regularization="learned")
    first, second = (measure_error(refine(scan, config=c, device="cpu"), truth_of or scan) for c in (config, learned))
    return first, second


@pytest.mark.contract("refine.learned")
@pytest.mark.parametrize("method", ["rpie", "lsqml", "gradient"])
def test_the_prior_lowers_the_error_at_low_dose(method: str) -> None:
    plain, learned = compare_errors(make_scan(), dataclasses.replace(QUICK, method=method))
    assert learned < 0.75 * plain


@pytest.mark.contract("refine.learned.high-dose")
def test_at_high_dose_the_image_is_that_without_a_prior() -> None:
    plain, learned = compare_errors(make_scan(1e8))
    assert learned < 1.02 * plain


@pytest.mark.contract("refine.learned.misfit")
@pytest.mark.parametrize("photons", [1e3, 1e4, 1e5])
def test_the_image_still_explains_the_counts(photons: float) -> None:
    image = refine(make_scan(photons), config=LEARNED, device="cpu")
    found = image.provenance["regularization"]
    assert found["kind"] == "learned"
    assert 0.9 < found["misfit_after"] < 1.2
    assert found["misfit_before"] < found["misfit_after"]
    assert found["step"] > 0


@pytest.mark.contract("refine.learned.probe")
def test_probe_and_modes_are_refined_as_without_it() -> None:
    scan = make_scan()
    config = dataclasses.replace(QUICK, probe_update=True, n_modes=2)
    plain = refine(scan, config=config, device="cpu")
    learned = refine(scan, config=dataclasses.replace(config, regularization="learned"), device="cpu")
    assert plain.probe is not None
    assert learned.probe is not None
    first, second = (np.abs(image.probe[0]) / np.linalg.norm(image.probe[0]) for image in (plain, learned))
    assert np.linalg.norm(first - second) < 0.1
    assert measure_error(learned, scan) < 0.8 * measure_error(plain, scan)


@pytest.mark.contract("refine.learned.wrong-inputs")
@pytest.mark.parametrize("fault", ["probe", "positions", "mask", "flat"])
def test_wrong_inputs_do_not_make_it_invent(fault: str) -> None:
    scan = make_scan()
    rng = np.random.default_rng(2)
    given = scan
    if fault == "probe":
        y, x = np.mgrid[:32, :32] / 32 - 0.5
        given = dataclasses.replace(scan, probe=(scan.probe * np.exp(30j * (y**2 + x**2))).astype(np.complex64))
    elif fault == "positions":
        moved = scan.positions_px + rng.choice([-2.0, 0.0, 2.0], scan.positions_px.shape)
        low, high = scan.positions_px.min(0), scan.positions_px.max(0)
        given = dataclasses.replace(scan, positions_px=np.clip(moved, low, high))
    elif fault == "mask":
        mask = np.ones((32, 32), bool)
        mask[14:18, :] = mask[:, 20:22] = False
        given = dataclasses.replace(scan, mask=mask)
    else:
        flat = np.full((84, 84), 0.8 + 0.1j, np.complex64)
        config = SimulateConfig(n_px=32, n_frames=60, photons_per_frame=1e4, simulation_seed=4)
        given = scan = simulate(config, object=flat, probe=scan.probe, positions_px=scan.positions_px)
    plain, learned = compare_errors(given, truth_of=scan)
    assert learned < 1.05 * plain


@pytest.mark.contract("refine.learned.resume")
def test_a_finished_refinement_is_not_denoised_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float] = []

    def count(*arguments: Any) -> dict[str, float]:
        found = apply_last_step(*arguments)
        steps.append(found["step"])
        return found

    monkeypatch.setattr(prior_steps, "apply_last_step", count)
    state = tmp_path / "state.npz"
    image = refine(make_scan(), config=LEARNED, device="cpu", state_file=state)
    # A second step would perhaps change nothing, because the counts would not allow it.
    assert len(steps) == 1
    assert steps[0] > 0
    again = refine(make_scan(), config=LEARNED, device="cpu", state_file=state, resume=True)
    assert len(steps) == 1
    assert np.array_equal(image.object, again.object)


@pytest.mark.contract("refine.learned.refused")
def test_it_needs_polishing_and_no_other_penalty() -> None:
    for other in ({"polish": 0.0}, {"tv_weight": 0.1}):
        with pytest.raises(ConfigError, match="found learned"):
            refine(make_scan(), config=dataclasses.replace(LEARNED, **other), device="cpu")  # type: ignore[arg-type]


@pytest.mark.contract("refine.learned.weights")
def test_the_prior_is_that_of_the_given_weights(tmp_path: Path) -> None:
    shipped = load_prior()
    idle = PriorNetwork(shipped.network.config)
    torch.nn.init.zeros_(idle.head.weight)
    weights = save_prior(idle, tmp_path / "idle.safetensors", {})
    given = dataclasses.replace(LEARNED, prior_weights=str(weights))
    plain, image = (refine(make_scan(), config=config, device="cpu") for config in (QUICK_PLAIN, given))
    # A network that changes nothing: the image is that without a prior, but for momentum that begins again.
    assert np.linalg.norm(image.object - plain.object) < 0.1 * np.linalg.norm(plain.object)
    assert image.provenance["regularization"]["prior_sha256"] == load_prior(weights).sha256 != shipped.sha256


@pytest.mark.contract("refine.learned.refused")
def test_weights_without_a_prior_and_weights_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected none with regularization 'none'"):
        refine(make_scan(), config=dataclasses.replace(QUICK_PLAIN, prior_weights="w"), device="cpu")
    missing = str(tmp_path / "none.safetensors")
    with pytest.raises(StoreError, match=r"none\.safetensors: expected weights of a prior"):
        refine(make_scan(), config=dataclasses.replace(LEARNED, prior_weights=missing), device="cpu")


def test_no_strength_changes_nothing() -> None:
    plain = refine(make_scan(), config=QUICK, device="cpu")
    off = refine(make_scan(), config=dataclasses.replace(LEARNED, regularization_strength=0.0), device="cpu")
    assert np.array_equal(plain.object, off.object)
