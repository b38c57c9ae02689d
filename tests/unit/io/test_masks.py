"""The sense of detector masks, and codes that detectors write in place of counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scan_files import fill_cxi, fill_patterns, fill_product

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import MappingConfig, ReadConfig, SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.quality import find_saturated_frames
from torchptycho.data.simulation import simulate
from torchptycho.io import iter_checked_chunks, read_scan, write_scan

M, N = 20, 32
SIMULATED = simulate(
    SimulateConfig(n_px=N, object_px=80, n_frames=M, photons_per_frame=1e5, probe_kind="gaussian", probe_diameter_px=9)
)
FRAMES = SIMULATED.frames[:]
ROWS = np.zeros((N, N), bool)
ROWS[5:7] = True
POSITIONS = {"ycoords": SIMULATED.positions_px[:, 0], "xcoords": SIMULATED.positions_px[:, 1]}
DETECTOR = "entry/instrument/detector"


def write_npz(path: Path, frames: np.ndarray = FRAMES, **changes: Any) -> Path:
    np.savez(path, diffraction=frames, probeGuess=SIMULATED.probe, **POSITIONS, **changes)
    return path


def write_masks(path: Path, **masks: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in masks.items():
            file[name.replace("__", "/")] = values
    return path


def with_frames(frames: np.ndarray, path: Path, **options: Any) -> Scan:
    return read_scan(write_npz(path, frames), ReadConfig(**options))


BITS = ROWS * np.uint32(8)
MASKS = {
    "pixel_mask": ("entry__instrument__detector__pixel_mask", ROWS.astype(np.uint32)),
    "pixel_mask of bits": ("entry__instrument__detector__pixel_mask", BITS),
    "bad_pixels": ("bad_pixels", ROWS),
    "bad pixel mask": ("BadPixelMask", ROWS.astype(np.int8)),
    "invalid": ("invalid", ROWS),
    "dead": ("dead_pixels", ROWS.astype(float)),
    "mask at a detector": ("entry__instrument__detector__mask", ROWS.astype(np.uint8)),
    "mask of bits": ("mask", BITS),
    "mask": ("mask", ~ROWS),
    "mask of 0 and 1": ("mask", (~ROWS).astype(np.uint8)),
    "valid": ("valid_pixels", (~ROWS).astype(np.uint8)),
    "good": ("detector__good", ~ROWS),
    "weights": ("weights", (~ROWS).astype(float)),
}


@pytest.mark.contract("reading.mask.sense")
@pytest.mark.parametrize("name", MASKS)
def test_name_and_values_of_a_mask_decide_what_is_good(tmp_path: Path, name: str) -> None:
    key, values = MASKS[name]
    masks = write_masks(tmp_path / "m.h5", **{key: values})
    key = key.replace("__", "/")
    scan = read_scan(write_npz(tmp_path / "scan.npz"), ReadConfig(mask=f"{masks}:{key}"))
    np.testing.assert_array_equal(scan.mask, ~ROWS)
    assert any(note.startswith(f"64 pixel(s) masked by {key}: ") for note in scan.notes)
    raw = write_masks(tmp_path / "raw.h5", f=FRAMES, y=POSITIONS["ycoords"], x=POSITIONS["xcoords"], p=SIMULATED.probe)
    mapping = MappingConfig(
        frames="f", positions_y="y", positions_x="x", positions_unit="px", probe="p", mask=f"{masks}:{key}"
    )
    np.testing.assert_array_equal(read_scan(raw, ReadConfig(mapping=mapping)).mask, ~ROWS)
    good = "nonzero" if values[5, 0] == 0 else "zero"
    stated = dataclasses.replace(mapping, mask_good=good)
    np.testing.assert_array_equal(read_scan(raw, ReadConfig(mapping=stated)).mask, ~ROWS)


@pytest.mark.contract("reading.mask.sense")
@pytest.mark.contract("reading.mask.part")
def test_an_option_overrides_the_name_and_a_mask_of_nearly_everything_is_refused(tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "m.h5", mask=ROWS, pixel_mask=(~ROWS).astype(np.uint8))
    path = write_npz(tmp_path / "scan.npz")
    for key, right, wrong in (("mask", "bad", "good"), ("pixel_mask", "good", "bad")):
        with pytest.raises(ScanError, match=r"found 960 of 1024 masked\. .*--mask-sense bad or --mask-sense good"):
            read_scan(path, ReadConfig(mask=f"{masks}:{key}"))
        np.testing.assert_array_equal(read_scan(path, ReadConfig(mask=f"{masks}:{key}", mask_sense=right)).mask, ~ROWS)
        np.testing.assert_array_equal(read_scan(path, ReadConfig(mask=f"{masks}:{key}", mask_sense=wrong)).mask, ROWS)


@pytest.mark.contract("reading.mask.part")
def test_a_mask_over_a_tenth_of_the_light_has_to_be_asked_for(tmp_path: Path) -> None:
    middle = np.zeros((N, N), bool)
    middle[N // 2 - 2 : N // 2 + 2, N // 2 - 2 : N // 2 + 2] = True
    masks = write_masks(tmp_path / "m.h5", bad_pixels=middle)
    path = write_npz(tmp_path / "scan.npz")
    with pytest.raises(ScanError, match=r"found 16 with \d+% of the light masked"):
        read_scan(path, ReadConfig(mask=f"{masks}:bad_pixels"))
    assert (~read_scan(path, ReadConfig(mask=f"{masks}:bad_pixels", mask_sense="bad")).mask).sum() == 16
    # What hot pixels, codes and NaN count is no light.
    frames = FRAMES.astype(np.float64)
    frames[:, 5:7], frames[:, 20, 20], frames[:, 21, 3] = 2**32 - 1, 1e8 + np.arange(M), np.nan
    bad = ROWS.copy()
    bad[20, 20] = bad[21, 3] = True
    scan = read_scan(write_npz(tmp_path / "hot.npz", frames, bad_pixels=bad), ReadConfig(domain="counts"))
    np.testing.assert_array_equal(scan.mask, ~bad)


@pytest.mark.contract("reading.mask.sense")
def test_own_masks_follow_the_option_and_what_was_converted_is_not_asked_again(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "scan.npz", mask=ROWS)
    with pytest.raises(ScanError, match="--mask-sense bad"):
        read_scan(path)
    np.testing.assert_array_equal(read_scan(path, ReadConfig(mask_sense="bad")).mask, ~ROWS)
    few = read_scan(path, ReadConfig(mask_sense="good"))
    np.testing.assert_array_equal(few.mask, ROWS)
    write_scan(few, tmp_path / "again.npz")
    np.testing.assert_array_equal(read_scan(tmp_path / "again.npz").mask, ROWS)
    nexus = write_npz(tmp_path / "nexus.npz", pixel_mask=BITS)
    np.testing.assert_array_equal(read_scan(nexus).mask, ~ROWS)


@pytest.mark.contract("reading.mask.sense")
def test_inverted_masks_of_cxi_files_and_products_are_refused_or_turned(tmp_path: Path) -> None:
    eye = np.eye(8, dtype=bool)
    with h5py.File(tmp_path / "scan.cxi", "w") as file:
        fill_cxi(file)
        file["entry_1/instrument_1/detector_1/mask"][()] = ~eye
    with h5py.File(tmp_path / "diffraction.h5", "w") as file:
        fill_patterns(file)
        file["bad_pixels"][()] = ~eye
    with h5py.File(tmp_path / "product.h5", "w") as file:
        fill_product(file)
    for name in ("scan.cxi", "product.h5"):
        with pytest.raises(ScanError, match="found 56 of 64 masked"):
            read_scan(tmp_path / name)
        np.testing.assert_array_equal(read_scan(tmp_path / name, ReadConfig(mask_sense="good")).mask, ~eye)


CODES: dict[str, tuple[Any, str]] = {
    "2^32 - 1 in its own dtype": (2**32 - 1, "u4"),
    "2^32 - 1 in int64": (2**32 - 1, "i8"),
    "2^32 - 1 in uint64": (2**32 - 1, "u8"),
    "2^32 - 1 in float64": (2**32 - 1, "f8"),
    "2^32 - 1 in float32": (2**32 - 1, "f4"),
    "2^32 - 2": (2**32 - 2, "u4"),
    "2^31 - 1": (2**31 - 1, "i4"),
    "2^31 - 1 in float32": (2**31 - 1, "f4"),
    "65535 in its own dtype": (65535, "u2"),
    "65535 in uint32": (65535, "u4"),
    "65534": (65534, "u2"),
    "65535 in float32": (65535, "f4"),
    "-1": (-1, "i4"),
    "-2 in int16": (-2, "i2"),
    "-1 in float32": (-1, "f4"),
    "NaN": (np.nan, "f4"),
}


@pytest.mark.contract("reading.codes")
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("compressed", [True, False])
def test_codes_of_detectors_are_masked_in_any_dtype(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, compressed: bool
) -> None:
    code, dtype = CODES[name]
    frames = np.where(ROWS, np.array(code, dtype), np.minimum(FRAMES, 30_000).astype(dtype))
    path = tmp_path / "scan.npz"
    (np.savez_compressed if compressed else np.savez)(path, diffraction=frames, probeGuess=SIMULATED.probe, **POSITIONS)
    scan = read_scan(path, ReadConfig(domain="counts"))
    np.testing.assert_array_equal(scan.mask, ~ROWS)
    assert "64 pixel(s) hold a detector's code in every frame" in caplog.text
    assert sum(float(chunk.sum()) for chunk in iter_checked_chunks(scan)) < 1e8
    assert inspect_scan(scan).usable
    assert read_scan(path, ReadConfig(domain="counts", mask_codes=False)).mask.all()


@pytest.mark.contract("reading.codes")
def test_roots_of_codes_are_masked_in_amplitudes(tmp_path: Path) -> None:
    frames = np.sqrt(np.where(ROWS, 65535.0, FRAMES)).astype(np.float32)
    np.testing.assert_array_equal(with_frames(frames, tmp_path / "s.npz", domain="amplitude").mask, ~ROWS)


@pytest.mark.contract("reading.codes")
def test_bright_counts_and_saturation_in_some_frames_stay(tmp_path: Path) -> None:
    frames = FRAMES.astype(np.uint16)
    frames[:5, 5, 5] = 65535
    frames[:, 7, 7] = 65530
    frames[:, 9, 9] = 65520 + np.arange(M) % 16
    scan = with_frames(frames, tmp_path / "s.npz")
    assert scan.mask.all()
    assert inspect_scan(scan).n_saturated_pixels == 2
    # In a wider dtype 65535 is a count like others, and 2^32 - 1 is none.
    wide = frames.astype(np.int64)
    assert inspect_scan(with_frames(wide, tmp_path / "w.npz")).n_saturated_pixels == 0
    wide[3, 6, 6] = 2**32 - 1
    scan = with_frames(wide, tmp_path / "c.npz")
    assert inspect_scan(scan).n_saturated_pixels == 1
    assert np.flatnonzero(find_saturated_frames(wide)).tolist() == [3]
    found = with_frames(wide, tmp_path / "c.npz", find_bad_pixels=True)
    assert not found.mask[6, 6]


@pytest.mark.contract("reading.codes")
def test_frames_that_are_alike_are_no_codes(tmp_path: Path) -> None:
    frames = np.full((M, N, N), 65535, np.uint16)
    frames[0, 0, 0] = 3
    path = write_npz(tmp_path / "s.npz", frames)
    assert read_scan(path).mask.all()
    same = np.full((M, N, N), 65535, np.uint16)
    with pytest.raises(ScanError, match=r"differ|same"):
        for _ in iter_checked_chunks(read_scan(write_npz(tmp_path / "same.npz", same))):
            pass


@pytest.mark.contract("reading.codes")
def test_negative_values_in_all_frames_do_not_lead_to_dropping_them_all(tmp_path: Path) -> None:
    frames = FRAMES.astype(np.int32)
    frames[:, 3, 3] = -1 - np.arange(M) % 3
    scan = ArrayFrames(frames)
    with pytest.raises(ScanError) as caught:
        for _ in iter_checked_chunks(dataclasses.replace(SIMULATED, frames=scan)):
            pass
    assert "leave-out" not in str(caught.value)
    assert "--mask FILE:KEY), or set them to 0 with --clip-negative" in str(caught.value)


@pytest.mark.contract("reading.codes")
def test_counts_minus_a_constant_are_no_codes(tmp_path: Path) -> None:
    assert with_frames(
        FRAMES.astype(np.float32) - 2, tmp_path / "s.npz", domain="counts", clip_negative=True
    ).mask.all()
