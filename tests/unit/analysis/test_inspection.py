"""What `inspect_scan` says about simulated scans with known faults, and about measured ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchptycho.analysis.inspection import estimate_probe_diameter_px, inspect_scan
from torchptycho.core.config import RunConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.prepare import prepare
from torchptycho.io import read_scan, write_scan

N, SIDE = 32, 8
PHOTONS = 1e5


def disc(diameter_px: float) -> np.ndarray:
    rows, columns = np.indices((N, N)) - N // 2
    return (np.hypot(rows, columns) < diameter_px / 2).astype(np.complex64)


def scan_of(*, step_px: float = 3.0, seed: int = 0, **changes: Any) -> Scan:
    """A raster scan with a disc of 12 px over a random phase object, Poisson counts."""
    rng = np.random.default_rng(seed)
    m = SIDE * SIDE
    grid = np.indices((SIDE, SIDE)).reshape(2, -1).T
    positions_px = grid * step_px + rng.uniform(-0.3, 0.3, (m, 2))
    coarse = rng.uniform(-1, 1, (m, N // 8, N // 8))
    phase = np.kron(coarse, np.ones((8, 8)))
    wave = disc(12) * np.exp(1j * phase)
    intensity = np.abs(np.fft.fftshift(np.fft.fft2(wave), axes=(1, 2))) ** 2
    frames = rng.poisson(intensity * PHOTONS / intensity.sum(axis=(1, 2), keepdims=True) + 0.5).astype(np.uint32)
    return Scan(
        **{
            "frames": ArrayFrames(frames),
            "domain": "counts",
            "positions_px": positions_px,
            "probe": disc(12)[None],
            "mask": np.ones((N, N), bool),
            "scan_id": np.zeros(m, np.int64),
        }
        | changes
    )


def with_frames(scan: Scan, frames: np.ndarray, **changes: Any) -> Scan:
    return dataclasses.replace(scan, frames=ArrayFrames(frames), **changes)


def only_problem(scan: Scan) -> str:
    (problem,) = inspect_scan(scan).problems
    return problem


@pytest.mark.contract("inspect.clean")
@pytest.mark.parametrize("seed", range(3))
def test_clean_scan_has_no_problems(seed: int) -> None:
    summary = inspect_scan(scan_of(seed=seed, geometry=Geometry(object_pixel_m=2e-8)))
    assert summary.problems == []
    assert summary.usable
    assert summary.photons_mean == pytest.approx(PHOTONS + 0.5 * N * N, rel=1e-2)
    assert (summary.n_modes, summary.has_truth, summary.has_truth_patches) == (1, False, False)
    assert (summary.n_frames, summary.n_scans, summary.n_px, summary.dtype) == (64, 1, N, "uint32")
    assert summary.field_m == pytest.approx([length * 2e-8 for length in summary.field_px], rel=1e-12)
    assert summary.field_px == pytest.approx((21, 21), abs=0.6)
    assert summary.overlap == pytest.approx(1 - summary.step_px / summary.probe_diameter_px, abs=1e-12)


@pytest.mark.contract("inspect.beam")
def test_ninety_percent_of_a_disc_is_95_percent_as_wide() -> None:
    assert estimate_probe_diameter_px(disc(20)[None]) == pytest.approx(0.9**0.5 * 20, abs=0.7)


@pytest.mark.contract("inspect.detector")
def test_dead_and_hot_pixels_are_named_by_row_and_column() -> None:
    scan = scan_of()
    frames = scan.frames[:].copy()
    frames[:, 14, 17] = 0
    frames[:, 5, 25] += 300
    summary = inspect_scan(with_frames(scan, frames))
    assert summary.dead_pixels == [(14, 17)]
    assert summary.hot_pixels == [(5, 25)]
    assert [problem.split(" never")[0] for problem in summary.problems if "never" in problem] == [
        "1 pixel(s) ([14, 17])"
    ]
    assert all("--find-bad-pixels" in problem for problem in summary.problems)
    assert summary.usable
    mask = np.ones((N, N), bool)
    mask[14, 17] = mask[5, 25] = False
    masked = inspect_scan(with_frames(scan, frames, mask=mask))
    assert (masked.dead_pixels, masked.hot_pixels, masked.n_masked_pixels) == ([], [], 2)


@pytest.mark.contract("inspect.detector")
def test_a_gap_two_pixels_wide_between_modules_is_dead() -> None:
    scan = scan_of()
    frames = scan.frames[:].copy()
    frames[:, :, 14:16] = 0
    summary = inspect_scan(with_frames(scan, frames))
    assert summary.n_dead_pixels > N
    assert {column for _, column in summary.dead_pixels} == {14, 15}
    assert len(summary.dead_pixels) == 20


@pytest.mark.contract("inspect.overlap")
def test_coarse_scan_tells_step_and_beam() -> None:
    problem = only_problem(scan_of(step_px=8))
    summary = inspect_scan(scan_of(step_px=8))
    assert f"{summary.overlap:.0%}" in problem
    assert f"{summary.probe_diameter_px:.3g} px" in problem
    assert "finer" in problem
    assert summary.usable
    apart = inspect_scan(scan_of(step_px=30))
    assert apart.overlap == 0
    assert not apart.usable
    assert "object pixels" in apart.problems[0]


@pytest.mark.contract("inspect.size")
def test_frames_that_no_network_takes_are_usable_and_networks_have_a_way_out(tmp_path: Path) -> None:
    scan = scan_of()
    inner = slice(N // 2 - 12, N // 2 + 12)
    small = with_frames(
        scan, scan.frames[:][:, inner, inner], probe=scan.probe[:, inner, inner], mask=scan.mask[inner, inner]
    )
    summary = inspect_scan(small)
    assert summary.usable
    problem = next(problem for problem in summary.problems if problem.startswith("For networks: "))
    assert "24 px" in problem
    assert "Pad them with --crop-px 32" in problem
    assert "0.75 times as large" in problem
    with pytest.raises(ScanError) as refused:
        prepare([small], RunConfig(), tmp_path / "store")
    assert problem.endswith(refused.value.remedy)


@pytest.mark.contract("inspect.shifted")
def test_zero_frequency_in_the_corner_makes_a_scan_unusable() -> None:
    scan = scan_of()
    summary = inspect_scan(with_frames(scan, np.fft.ifftshift(scan.frames[:], axes=(1, 2))))
    assert not summary.usable
    assert "fftshift" in summary.problems[0]


@pytest.mark.contract("inspect.frames")
def test_frames_cut_beside_the_beam_tell_the_offset() -> None:
    scan = scan_of()
    problem = only_problem(with_frames(scan, np.roll(scan.frames[:], 5, axis=1)))
    assert "px in y" in problem
    assert inspect_scan(with_frames(scan, np.roll(scan.frames[:], 5, axis=1))).beam_offset_px[0] > 3


@pytest.mark.contract("inspect.frames")
def test_lost_beam_repeated_positions_and_saturation_are_counted() -> None:
    scan = scan_of()
    frames = scan.frames[:].copy()
    frames[[3, 9]] = frames[[3, 9]] // 50
    summary = inspect_scan(with_frames(scan, frames))
    assert summary.dim_frames == [3, 9]
    assert "2 frame(s) (3, 9)" in summary.problems[0]
    positions_px = scan.positions_px.copy()
    positions_px[5] = positions_px[4]
    assert inspect_scan(dataclasses.replace(scan, positions_px=positions_px)).n_duplicate_positions == 1
    apart = dataclasses.replace(scan, positions_px=positions_px, scan_id=np.arange(scan.n_frames) % 2)
    assert inspect_scan(apart).n_duplicate_positions == 0
    assert inspect_scan(apart).n_scans == 2
    frames = np.minimum(scan.frames[:], 255).astype(np.uint8)
    assert "largest uint8" in only_problem(with_frames(scan, frames))


@pytest.mark.contract("inspect.dose")
def test_amplitude_data_take_their_dose_from_the_metadata() -> None:
    scan = scan_of()
    amplitude = (np.sqrt(scan.frames[:]) / 300).astype(np.float32)
    known = inspect_scan(with_frames(scan, amplitude, domain="amplitude", metadata={"nphotons": PHOTONS}))
    assert known.photons_mean == pytest.approx(PHOTONS, rel=1e-6)
    assert known.problems == []
    totals = scan.frames[:].sum(axis=(1, 2))
    assert known.photons_min == pytest.approx(PHOTONS * totals.min() / totals.mean(), rel=1e-6)
    assert inspect_scan(with_frames(scan, amplitude, domain="amplitude")).photons_mean is None


@pytest.mark.contract("inspect.chunks")
def test_summary_is_plain_and_the_same_mapped_or_streamed(tmp_path: Path) -> None:
    write_scan(scan_of(), tmp_path / "zipped.npz", compressed=True)
    write_scan(scan_of(), tmp_path / "stored.npz", compressed=False)
    dicts = [inspect_scan(read_scan(tmp_path / f"{kind}.npz")).to_dict() for kind in ("zipped", "stored")]
    assert json.loads(json.dumps(dicts[0])) == dicts[0]
    assert dicts[0] | {"source": ""} == dicts[1] | {"source": ""}


@pytest.mark.contract("inspect.clean")
@pytest.mark.parametrize(
    ("name", "overlap", "photons"), [("siemens-star-128.npz", 0.84, 461213), ("synth64-train.npz", 0.87, 1e9)]
)
def test_measured_and_reference_scans_raise_no_alarm(
    measured_data: Path, name: str, overlap: float, photons: float
) -> None:
    summary = inspect_scan(read_scan(measured_data / name))
    assert summary.problems == []
    assert summary.overlap == pytest.approx(overlap, abs=0.01)
    assert summary.photons_mean == pytest.approx(photons, rel=1e-5)
