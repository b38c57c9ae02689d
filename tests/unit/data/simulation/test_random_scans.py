"""Random objects and scans for training a prior: what is drawn, and what is kept out."""

from __future__ import annotations

import numpy as np
import pytest

from torchptycho.data.simulation.random_objects import draw_random_object
from torchptycho.data.simulation.random_scans import draw_random_scan
from torchptycho.data.simulation.textures import HELD_OUT_FAMILIES, TRAINING_FAMILIES, draw_family


@pytest.mark.parametrize("family", [*TRAINING_FAMILIES, *HELD_OUT_FAMILIES])
def test_each_family_draws_two_maps_that_depend_on_the_seed(family: str) -> None:
    first, second = draw_family(family, 64, np.random.default_rng(1))
    again, _ = draw_family(family, 64, np.random.default_rng(1))
    other, _ = draw_family(family, 64, np.random.default_rng(2))
    assert first.shape == second.shape == (64, 64)
    for values in (first, second):
        assert values.min() == 0
        assert values.max() in (0, 1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.contract("prior.held-out")
def test_no_family_is_trained_on_and_held_out() -> None:
    assert not set(TRAINING_FAMILIES) & set(HELD_OUT_FAMILIES)
    assert {"siemens_star", "vessels", "photographs"} <= set(HELD_OUT_FAMILIES)
    drawn = {name for seed in range(60) for name in _draw_names(seed)}
    assert drawn <= set(TRAINING_FAMILIES)
    assert len(drawn) > 8


def _draw_names(seed: int) -> list[str]:
    return draw_random_object(24, np.random.default_rng(seed))[1].split("+")


def test_objects_transmit_no_more_than_everything() -> None:
    amplitude = np.stack([np.abs(draw_random_object(32, np.random.default_rng(seed))[0]) for seed in range(20)])
    assert amplitude.min() >= 0
    assert amplitude.max() <= 1 + 1e-6
    assert np.isfinite(amplitude).all()


@pytest.mark.contract("prior.scans")
def test_scans_depend_on_the_seed_and_cover_many_doses_and_probes() -> None:
    drawn = []
    for number in range(25):
        scan, what = draw_random_scan(np.random.SeedSequence([7, number]))
        assert scan.truth is not None
        drawn.append(what)
    again, _ = draw_random_scan(np.random.SeedSequence([7, 24]))
    assert np.array_equal(scan.truth, again.truth)
    assert np.array_equal(scan.frames[:2], again.frames[:2])
    assert len({what["probe"] for what in drawn}) >= 3
    assert max(what["dose"] for what in drawn) > 1e3 * min(what["dose"] for what in drawn)
    assert {what["wrong"] for what in drawn} > {"nothing"}


def test_a_given_probe_illuminates_every_scan() -> None:
    probe = np.zeros((1, 32, 32), np.complex64)
    probe[:, 10:22, 11:23] = 1j
    scan, what = draw_random_scan(np.random.SeedSequence(3), probe=probe)
    assert what["probe"] == "given"
    assert scan.n_px == 32
    assert what["wrong"] != "nothing" or np.count_nonzero(scan.probe) == 144
