"""What the options of reading do to a scan: cutting, binning, corrections, masks, orientation, what is left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from torchptycho.core.config import PrepareConfig, ReadConfig, RunConfig, SimulateConfig, extract_read_config
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import iter_checked_chunks, read_scan, write_scan
from torchptycho.io.fingerprint import fingerprint_scan
from torchptycho.io.frames.processing import resample_probe
from torchptycho.physics.diffraction import far_field
from torchptycho.reconstructors.orientation import rank_orientations

M, N = 24, 32
RNG = np.random.default_rng(2)
SIMULATED = simulate(
    SimulateConfig(n_px=N, object_px=80, n_frames=M, photons_per_frame=1e5, probe_kind="gaussian", probe_diameter_px=9)
)
GEOMETRY = Geometry(energy_eV=8000.0, distance_m=1.0, detector_pixel_m=5e-5).with_object_pixel(N)


def scan_file(tmp_path: Path, name: str = "scan.npz", **changes: Any) -> Path:
    write_scan(dataclasses.replace(SIMULATED, geometry=GEOMETRY, **changes), tmp_path / name, compressed=False)
    return tmp_path / name


def opened(path: Path, **options: Any) -> Scan:
    return read_scan(path, ReadConfig(**options))


def stack(scan: Scan) -> np.ndarray:
    return np.concatenate(list(iter_checked_chunks(scan, 5)))


FRAMES = SIMULATED.frames[:]


@pytest.mark.contract("reading.crop")
def test_cutting_puts_the_beam_in_the_middle_and_follows_with_everything_else(tmp_path: Path) -> None:
    path = scan_file(tmp_path)
    scan = opened(path, crop_px=16, beam_center_px=(18.0, 14.0))
    np.testing.assert_array_equal(stack(scan), FRAMES[:, 10:26, 6:22])
    np.testing.assert_allclose(scan.positions_px, SIMULATED.positions_px / 2)
    assert scan.geometry.object_pixel_m == pytest.approx(2 * GEOMETRY.object_pixel_m)
    assert scan.geometry.detector_pixel_m == GEOMETRY.detector_pixel_m
    assert scan.mask.all()
    assert scan.truth is None
    assert any("cut to rows 10:26, columns 6:22" in note for note in scan.notes)


@pytest.mark.contract("reading.crop.beyond")
def test_what_lies_beyond_the_detector_is_masked_and_not_dark(tmp_path: Path) -> None:
    scan = opened(scan_file(tmp_path), crop_px=64)
    np.testing.assert_array_equal(stack(scan)[:, 16:48, 16:48], FRAMES)
    assert int(scan.mask.sum()) == N * N
    assert scan.mask[16:48, 16:48].all()
    np.testing.assert_allclose(scan.positions_px, SIMULATED.positions_px * 2)
    with pytest.raises(ScanError, match="Choose a smaller crop_px"):
        opened(tmp_path / "scan.npz", crop_px=128)


@pytest.mark.contract("reading.binning")
def test_binning_keeps_counts_and_object_pixel(tmp_path: Path) -> None:
    bad = np.zeros((N, N), bool)
    bad[16, 16] = True
    scan = opened(scan_file(tmp_path, mask=~bad), binning=2, beam_center_px=(16.5, 16.5))
    whole = np.where(bad, 0, FRAMES.astype(np.int64))
    np.testing.assert_array_equal(stack(scan), whole.reshape(M, 16, 2, 16, 2).sum((2, 4)) * scan.mask)
    assert np.argwhere(~scan.mask).tolist() == [[8, 8]]
    assert scan.geometry.object_pixel_m == pytest.approx(GEOMETRY.object_pixel_m)
    assert scan.geometry.detector_pixel_m == 2 * (GEOMETRY.detector_pixel_m or 0)
    np.testing.assert_allclose(scan.positions_px, SIMULATED.positions_px)
    assert scan.truth is not None
    small = dataclasses.replace(SIMULATED, frames=ArrayFrames(np.full((M, N, N), 60_000, np.uint16)))
    write_scan(
        dataclasses.replace(
            small,
            frames=ArrayFrames(
                small.frames[:] - np.eye(N, dtype=np.uint16) * np.arange(M, dtype=np.uint16)[:, None, None]
            ),
        ),
        tmp_path / "bright.npz",
    )
    assert int(opened(tmp_path / "bright.npz", binning=4).frames[:].max()) == 16 * 60_000


@pytest.mark.contract("reading.binning")
def test_binned_amplitudes_add_as_intensities(tmp_path: Path) -> None:
    amplitude = dataclasses.replace(
        SIMULATED, frames=ArrayFrames(np.sqrt(FRAMES).astype(np.float32)), domain="amplitude"
    )
    write_scan(amplitude, tmp_path / "a.npz")
    counts = opened(scan_file(tmp_path), binning=2).frames[:]
    np.testing.assert_allclose(opened(tmp_path / "a.npz", binning=2).frames[:], np.sqrt(counts), rtol=1e-5)


@pytest.mark.contract("reading.probe.resampled")
@pytest.mark.parametrize(("n_px", "binning"), [(32, 1), (16, 1), (64, 1), (16, 2), (8, 2)])
def test_probe_follows_the_frames(n_px: int, binning: int) -> None:
    """The far field of the new probe is what the old one's detector counts in the new pixels."""
    probe = SIMULATED.probe
    new = resample_probe(probe, n_px, binning)
    assert new.shape == (1, n_px, n_px)

    def counts(wave: np.ndarray) -> np.ndarray:
        return far_field(torch.from_numpy(wave.astype(np.complex128))).abs().square().sum(0).numpy()

    before, edge = counts(probe), n_px * binning
    start = N // 2 - edge // 2
    window = before[start : start + edge, start : start + edge] if start >= 0 else np.pad(before, -start)
    if binning == 1:
        np.testing.assert_allclose(counts(new), window, atol=1e-4 * before.max())
    else:
        # Samples at the middle of binned pixels stand for sums over them, as far as the far field is smooth there.
        sums = window.reshape(n_px, binning, n_px, binning).sum((1, 3))
        assert np.corrcoef(counts(new).ravel(), sums.ravel())[0, 1] > 0.93
        assert counts(new).sum() == pytest.approx(window.sum(), rel=0.08)


@pytest.mark.contract("reading.center")
def test_beam_centre_is_estimated_from_the_mean_pattern(tmp_path: Path) -> None:
    moved = np.roll(FRAMES, (5, -3), axis=(1, 2))
    path = scan_file(tmp_path, frames=ArrayFrames(moved))
    scan = opened(path, crop_px=16, beam_center_px="estimated")
    plain = opened(scan_file(tmp_path, "plain.npz"), crop_px=16, beam_center_px="estimated")
    np.testing.assert_array_equal(stack(scan), stack(plain))
    assert any("beam centre estimated" in note for note in scan.notes)
    with pytest.raises(ScanError, match="a beam centre inside the 32x32 px"):
        opened(path, beam_center_px=(40.0, 3.0))


@pytest.mark.contract("reading.fftshift")
def test_frames_with_the_zero_frequency_in_the_corner(tmp_path: Path) -> None:
    corner = np.fft.ifftshift(FRAMES, axes=(1, 2))
    bad = np.zeros((N, N), bool)
    bad[0, 1] = True
    scan = opened(scan_file(tmp_path, frames=ArrayFrames(corner), mask=~bad), fftshift=True)
    assert np.argwhere(~scan.mask).tolist() == [[16, 17]]
    np.testing.assert_array_equal(stack(scan), np.where(scan.mask, FRAMES, 0))


@pytest.mark.contract("reading.dark-flat")
def test_dark_is_subtracted_clipped_and_flat_divided(tmp_path: Path) -> None:
    dark, flat = RNG.uniform(0, 3, (N, N)), RNG.uniform(0.5, 1.5, (N, N))
    flat[4, 5] = 0
    np.savez(tmp_path / "corrections.npz", dark=np.stack([dark - 0.1, dark + 0.1]), flat=flat)
    at = str(tmp_path / "corrections.npz")
    scan = opened(scan_file(tmp_path), dark=f"{at}:dark", flat=f"{at}:flat")
    expected = np.maximum(FRAMES - dark, 0) / np.where(flat > 0, flat, 1)
    expected[:, 4, 5] = 0
    np.testing.assert_allclose(stack(scan), expected, rtol=1e-4, atol=1e-4)
    assert np.argwhere(~scan.mask).tolist() == [[4, 5]]
    assert scan.frames.dtype == np.float32
    assert scan.domain == "counts"
    np.save(tmp_path / "small.npy", dark[:4])
    with pytest.raises(ScanError, match="as the recorded frames"):
        opened(tmp_path / "scan.npz", dark=str(tmp_path / "small.npy"))
    with pytest.raises(ScanError, match="counts, for --dark"):
        opened(tmp_path / "scan.npz", dark=f"{at}:dark", domain="amplitude")


@pytest.mark.contract("reading.clip")
def test_negative_counts_are_refused_unless_they_are_to_be_clipped(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a"] = FRAMES.astype(np.float32) - 2
    path = _mapped(tmp_path)
    with pytest.raises(ScanError, match="negative values in 24 frames"):
        stack(read_scan(path[0], path[1]))
    clipped = read_scan(path[0], dataclasses.replace(path[1], clip_negative=True))
    np.testing.assert_array_equal(stack(clipped), np.maximum(FRAMES.astype(np.float32) - 2, 0))


def _mapped(tmp_path: Path, **options: Any) -> tuple[Path, ReadConfig]:
    from torchptycho.core.config import MappingConfig

    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["p"] = SIMULATED.positions_px
    mapping = MappingConfig(frames="a", positions_y="p[0]", positions_x="p[1]", positions_unit="px")
    return tmp_path / "f.h5", ReadConfig(mapping=mapping, guess_probe=True, **options)


@pytest.mark.contract("reading.mask")
@pytest.mark.parametrize("key", ["mask", "bad_pixels"])
def test_a_mask_of_another_file_is_added(tmp_path: Path, key: str) -> None:
    good = np.ones((N, N), bool)
    good[3, 4] = False
    np.savez(tmp_path / "m.npz", **{key: good if key == "mask" else ~good})
    scan = opened(scan_file(tmp_path), mask=f"{tmp_path / 'm.npz'}:{key}")
    assert np.argwhere(~scan.mask).tolist() == [[3, 4]]


@pytest.mark.contract("reading.bad-pixels")
def test_hot_dead_and_saturated_pixels_are_found_and_masked(tmp_path: Path) -> None:
    frames = FRAMES.astype(np.uint16)
    frames[:, 3, 4] = 9_000
    frames[:, 16, 17] = 0
    frames[5, 20, 20] = 65_535
    scan = opened(scan_file(tmp_path, frames=ArrayFrames(frames)), find_bad_pixels=True)
    assert np.argwhere(~scan.mask).tolist() == [[3, 4], [16, 17], [20, 20]]
    assert {"1 hot pixel(s) masked", "1 dead pixel(s) masked", "1 saturated pixel(s) masked"} <= set(scan.notes)
    assert stack(scan)[:, ~scan.mask].max() == 0


@pytest.mark.contract("reading.bad-frames")
@pytest.mark.contract("files.left-out")
def test_bad_frames_are_left_out_on_request_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = FRAMES.astype(np.float32)
    frames[3, 1, 1], frames[7], frames[9, 2, 2] = np.nan, 0, -1
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a"] = frames
    path, config = _mapped(tmp_path, drop_frames=(12,))
    with pytest.raises(ScanError, match="NaN or infinity in 1 frame: 3"):
        stack(read_scan(path, config))
    config = dataclasses.replace(config, bad_frames="leave-out", frames="2:")
    scan = read_scan(path, config)
    why = {3: "NaN or infinity", 7: "no counts", 9: "negative values", 12: "asked for by drop_frames"}
    assert scan.left_out == why
    kept = [n for n in range(2, M) if n not in why]
    np.testing.assert_array_equal(stack(scan), frames[kept])
    np.testing.assert_array_equal(scan.positions_px, SIMULATED.positions_px[kept])
    assert "4 frame(s) left out: 3 (NaN or infinity), 7 (no counts)" in caplog.text
    store = prepare([scan], RunConfig(prepare=PrepareConfig(**_shallow(config))), tmp_path / "store")
    assert Store.open(tmp_path / "store").scans[0].left_out == why
    assert store.scans[0].notes == scan.notes
    with pytest.raises(ScanError, match="a frame 99 to drop"):
        read_scan(path, dataclasses.replace(config, drop_frames=(99,)))


def _shallow(config: ReadConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(ReadConfig)}  # type: ignore[arg-type]


@pytest.mark.contract("reading.orientation")
def test_positions_are_swapped_then_flipped(tmp_path: Path) -> None:
    path, given = scan_file(tmp_path), SIMULATED.positions_px
    np.testing.assert_array_equal(opened(path, swap_xy=True).positions_px, given[:, ::-1])
    np.testing.assert_array_equal(opened(path, flip_y=True).positions_px, given * [-1, 1])
    scan = opened(path, swap_xy=True, flip_x=True)
    np.testing.assert_array_equal(scan.positions_px, given[:, ::-1] * [1, -1])
    assert scan.truth is None
    assert "positions turned: swap_xy, flip_x" in scan.notes


@pytest.mark.contract("reading.metres")
def test_metres_become_object_pixels_of_the_frames_that_come_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a"] = FRAMES
    path, config = _mapped(tmp_path)
    assert config.mapping is not None
    metres = dataclasses.replace(config, mapping=dataclasses.replace(config.mapping, positions_unit="um"))
    lengths = {"energy_eV": 8000.0, "distance_m": 1.0, "detector_pixel_m": 5e-5}
    for options, edge_m in (({}, 32 * 5e-5), ({"crop_px": 16}, 16 * 5e-5), ({"binning": 2}, 32 * 5e-5)):
        scan = read_scan(path, dataclasses.replace(metres, **lengths, **options))
        pixel_m = 1.239841984332002e-06 / 8000.0 * 1.0 / edge_m
        assert scan.geometry.object_pixel_m == pytest.approx(pixel_m)
        np.testing.assert_allclose(scan.positions_px, SIMULATED.positions_px * 1e-6 / pixel_m)
    far = dataclasses.replace(metres, mapping=dataclasses.replace(config.mapping, positions_unit="m"), **lengths)
    with pytest.raises(ScanError, match=r"span less than 0.5 m.*read with --positions-unit px\."):
        read_scan(path, far)


@pytest.mark.contract("reading.probe.guess")
def test_a_guessed_probe_has_the_mean_pattern_as_its_far_field(tmp_path: Path) -> None:
    path = scan_file(tmp_path)
    with np.load(path) as archive:
        np.savez(tmp_path / "none.npz", **{key: archive[key] for key in archive.files if key != "probeGuess"})
    with pytest.raises(ScanError, match="--probe FILE, or begin with one from the mean pattern: --guess-probe"):
        opened(tmp_path / "none.npz")
    np.testing.assert_array_equal(opened(path, guess_probe=True).probe, SIMULATED.probe)
    for defocus_m in (0.0, 1e-5):
        scan = opened(tmp_path / "none.npz", guess_probe=True, probe_defocus_m=defocus_m)
        pattern = far_field(torch.from_numpy(scan.probe))[0].abs().square().numpy()
        np.testing.assert_allclose(pattern, FRAMES.mean(0), rtol=1e-3, atol=1e-3)
        assert not scan.probe_is_calibrated
    flat = opened(tmp_path / "none.npz", guess_probe=True).probe
    assert np.abs(scan.probe).max() < np.abs(flat).max()
    assert scan.notes[-1] == "probe guessed from the mean pattern, 1e-05 m from the focus"


@pytest.mark.contract("reading.recorded")
def test_options_are_recorded_and_a_scan_that_was_read_otherwise_is_refused(tmp_path: Path) -> None:
    path, config = scan_file(tmp_path), ReadConfig(crop_px=32, binning=1, flip_y=True)
    scan = read_scan(path, config)
    wanted = RunConfig(prepare=PrepareConfig(**_shallow(config)))
    store = prepare([scan], wanted, tmp_path / "store")
    assert store.config["prepare"]["flip_y"] is True
    assert "prepare.flip_y" in store.fingerprint
    assert extract_read_config(wanted.prepare) == scan.reading == config
    with pytest.raises(ConfigError, match=r"flip_y: .* was read with False; found True"):
        prepare([read_scan(path)], wanted, tmp_path / "other")
    assert fingerprint_scan(read_scan(path, ReadConfig(crop_px=16))) != fingerprint_scan(
        read_scan(path, ReadConfig(crop_px=16, beam_center_px=(15.0, 16.0)))
    )


@pytest.mark.contract("reading.lazy")
def test_changed_frames_are_made_as_they_are_read(tmp_path: Path) -> None:
    scan = opened(scan_file(tmp_path), crop_px=16, binning=1)
    whole = stack(scan)
    for index in (slice(2, 9), np.array([5, 1, 5]), 7):
        np.testing.assert_array_equal(scan.frames[index], whole[index])
    assert max(len(chunk) for chunk in scan.frames.chunks(4)) <= 4


@pytest.mark.contract("inspect.orientation")
def test_the_right_orientation_explains_the_counts_best() -> None:
    wide = simulate(
        SimulateConfig(
            n_px=N, object_px=96, n_frames=100, photons_per_frame=1e5, probe_kind="zone_plate", object_kind="natural"
        )
    )
    turned = dataclasses.replace(wide, positions_px=np.ascontiguousarray(wide.positions_px[:, ::-1] * [-1.0, 1.0]))
    ranked = rank_orientations(turned, frames=60)
    assert len({(one.swap_xy, one.flip_y, one.flip_x) for one in ranked}) == 8
    assert [one.misfit for one in ranked] == sorted(one.misfit for one in ranked)
    best = ranked[0]
    undone = turned.positions_px[:, ::-1] if best.swap_xy else turned.positions_px
    undone = undone * [-1.0 if best.flip_y else 1.0, -1.0 if best.flip_x else 1.0]
    np.testing.assert_allclose(undone, wide.positions_px)
    assert ranked[1].misfit > 2 * best.misfit > 0.5
