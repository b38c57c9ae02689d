"""The verdict on an image: one word, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from torchptycho.analysis.inspection import ScanSummary, inspect_scan
from torchptycho.analysis.verdict import judge_image
from torchptycho.core.config import SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.simulation import simulate

N_FRAMES = 50


@pytest.fixture(scope="module")
def summary() -> ScanSummary:
    scan = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=N_FRAMES, probe_defocus_waves=1.0))
    return inspect_scan(scan)


def make_image(
    unexplained: float = 0.01, *, misfit: list[float] | None = None, moved_px: float = 0.0, **provenance: Any
) -> Reconstruction:
    given = np.zeros((N_FRAMES, 2))
    found = given.copy()
    found[:2] += moved_px
    return Reconstruction(
        object=np.ones((8, 8), np.complex64),
        coverage=np.ones((8, 8), np.float32),
        valid=np.ones((8, 8), bool),
        origin_px=(0, 0),
        positions_px=found,
        given_positions_px=given,
        provenance={"refine": {"position_update": "frames", "position_limit_px": 8.0}} | provenance,
        history={"misfit": misfit or [1.2] * 30, "unexplained": [unexplained] * 30},
    )


@pytest.mark.contract("report.verdict")
@pytest.mark.parametrize(
    ("image", "word", "reason"),
    [
        (make_image(), "good", "99.0% of the variation"),
        (make_image(0.1), "doubtful", "10% of the variation"),
        (make_image(0.3), "bad", "30% of the variation"),
        (make_image(complete=False), "doubtful", "interrupted"),
        (make_image(misfit=list(np.linspace(3, 1.5, 30))), "doubtful", "still falls, by 15% in the last 5 epochs"),
        (make_image(misfit=list(np.linspace(3, 0.9, 30))), "good", "nothing else"),
        (make_image(moved_px=8.0), "doubtful", "4% of the positions moved as far as they may (8 px)"),
        (make_image(moved_px=7.0), "good", ""),
        (make_image(warnings=["scan.npz: the probe has shrunk to 10%. Search."]), "bad", "The probe has shrunk"),
    ],
)
def test_verdict_follows_the_fit(summary: ScanSummary, image: Reconstruction, word: str, reason: str) -> None:
    verdict = judge_image(image, summary)
    assert verdict.word == word
    assert reason in verdict.reasons[0] if reason else verdict.reasons
    assert str(verdict).startswith(word.capitalize())


@pytest.mark.contract("report.verdict")
def test_verdict_follows_the_scan(summary: ScanSummary) -> None:
    image = make_image()
    sparse = dataclasses.replace(summary, overlap=0.3)
    assert judge_image(image, sparse).word == "doubtful"
    dim = dataclasses.replace(summary, photons_mean=20.0)
    assert "noise may hide" in judge_image(image, dim).reasons[0]
    useless = dataclasses.replace(summary, usable=False, problems=["The intensity lies around pixel [0, 0]."])
    assert judge_image(image, useless).reasons[0] == "The intensity lies around pixel [0, 0]."
    stitched = dataclasses.replace(image, history={})
    assert judge_image(stitched, summary).word == "unknown"
