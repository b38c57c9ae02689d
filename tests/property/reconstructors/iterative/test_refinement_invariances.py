"""What an image refined from drawn scans must not depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import scans
from tolerances import relative_l2

from torchptycho.core.config import RefineConfig
from torchptycho.core.scan import Scan
from torchptycho.physics.diffraction import expected_counts
from torchptycho.physics.overlap import merge_canvas_px
from torchptycho.physics.pie import GroupProjection, upsample_2x
from torchptycho.reconstructors.iterative import refine

QUICK = RefineConfig(epochs=3, batch_size=16, probe_update=False, patience=None)


def image_of(scan: Scan) -> torch.Tensor:
    return torch.from_numpy(refine(scan, config=QUICK).object)


@pytest.mark.contract("refine.translation")
@settings(max_examples=10)
@given(scan=scans(n_px=32), step_px=st.tuples(st.integers(-50, 50), st.integers(-50, 50)))
def test_image_moves_with_the_positions_and_does_not_change(scan: Scan, step_px: tuple[int, int]) -> None:
    moved = dataclasses.replace(scan, positions_px=scan.positions_px + np.array(step_px, float), truth=None)
    here, there = refine(scan, config=QUICK), refine(moved, config=QUICK)
    assert tuple(np.subtract(there.origin_px, here.origin_px)) == step_px
    # A position a hair from a whole number can fall on the other side of it.
    assert relative_l2(torch.from_numpy(there.object), torch.from_numpy(here.object)) < 1e-3


@pytest.mark.contract("refine.probe-phase")
@settings(max_examples=10)
@given(scan=scans(n_px=32), phase_rad=st.floats(-3.1, 3.1))
def test_image_does_not_depend_on_the_phase_of_the_probe(scan: Scan, phase_rad: float) -> None:
    turned = dataclasses.replace(scan, probe=(scan.probe * np.exp(1j * phase_rad)).astype(np.complex64))
    assert relative_l2(image_of(turned), image_of(scan)) < 1e-3


@pytest.mark.contract("phys.projection.dose")
@settings(max_examples=20)
@given(scan=scans(n_px=32), factor=st.floats(1e-3, 1e3))
def test_projection_does_not_depend_on_the_unit_of_amplitude(scan: Scan, factor: float) -> None:
    members = torch.arange(min(4, scan.n_frames))
    positions = torch.from_numpy(scan.positions_px)[members]
    offset_px = (positions - positions.mean(0))[None]
    counts = torch.from_numpy(scan.frames[members.numpy()].astype(np.float32))[None]
    amplitude = (counts if scan.domain == "counts" else counts.square()).sqrt()
    probe = torch.from_numpy(scan.probe)[None]
    good = torch.ones(1, 1, scan.n_px, scan.n_px, dtype=torch.bool)
    canvas_px = merge_canvas_px(scan.n_px, float(offset_px.abs().max()))
    images = []
    for unit in (1.0, factor):
        one, none = torch.full((1,), unit**2), torch.zeros(1)
        projection = GroupProjection(amplitude * unit, probe * unit, offset_px, good, one, none, canvas_px)
        images.append(projection.run(projection.make_transparent_objects(), 4)[0])
    assert relative_l2(images[1], images[0]) < 1e-3


@pytest.mark.contract("phys.projection.bounded")
@settings(max_examples=20)
@given(scan=scans(n_px=32), brighter=st.floats(-3, 6), wrong=st.booleans(), seed=st.integers(0, 2**31 - 1))
def test_projections_bear_a_wrong_beam_and_counts_of_another_dose(
    scan: Scan, brighter: float, wrong: bool, seed: int
) -> None:
    members = torch.arange(min(4, scan.n_frames))
    positions = torch.from_numpy(scan.positions_px)[members]
    offset_px = (positions - positions.mean(0))[None]
    counts = torch.from_numpy(scan.frames[members.numpy()].astype(np.float32))[None]
    counts = (counts if scan.domain == "counts" else counts.square()) * 10**brighter
    probe = torch.from_numpy(scan.probe)[None]
    if wrong:
        parts = torch.randn(2, *probe.shape, generator=torch.Generator().manual_seed(seed))
        probe = torch.complex(*parts) * probe.abs().square().mean().sqrt()
    good = torch.ones(1, 1, scan.n_px, scan.n_px, dtype=torch.bool)
    canvas_px = -(-merge_canvas_px(scan.n_px, float(offset_px.abs().max())) // 4) * 4
    given_ = (counts.sqrt(), probe, offset_px, good, torch.full((1,), 10**brighter), torch.zeros(1), canvas_px)
    coarse, fine = GroupProjection.at_half_resolution(*given_), GroupProjection(*given_)
    rough, velocity = coarse.run(coarse.make_transparent_objects(), 12)
    assert velocity is not None
    canvas, _ = fine.run(upsample_2x(rough), 12, upsample_2x(velocity))
    # Far from what was counted, perhaps, but not beyond it: a step that is too long grows without end.
    light = expected_counts(fine.extract_patches(canvas), probe[:, None]).sum()
    assert float(light) < 10 * float(counts.sum())
