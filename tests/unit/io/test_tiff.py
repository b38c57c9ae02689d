"""TIFF files: images that are written, and stacks that are read as frames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tifffile

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.io import read_scan, write_tiff
from torchptycho.io.array_refs import parse_array_ref
from torchptycho.io.frames.frame_stacks import find_backing_files

FRAMES = np.random.default_rng(1).poisson(50, (12, 16, 20)).astype(np.uint16)


def make_image(pixel_m: float | None = 2e-8) -> Reconstruction:
    rng = np.random.default_rng(0)
    object = rng.uniform(0.5, 1.5, (30, 40)) * np.exp(1j * rng.uniform(-3.1, 3.1, (30, 40)))
    valid = np.ones(object.shape, bool)
    valid[:3] = False
    coverage = valid.astype(np.float32)
    image = object.astype(np.complex64)
    return Reconstruction(object=image, coverage=coverage, valid=valid, origin_px=(0, 0), object_pixel_m=pixel_m)


@pytest.mark.contract("files.tiff.write")
def test_amplitude_and_phase_in_floats(tmp_path: Path) -> None:
    image = make_image()
    files = write_tiff(image, tmp_path / "image.tif")
    assert [file.name for file in files] == ["image-amplitude.tif", "image-phase.tif"]
    amplitude, phase = (tifffile.imread(file) for file in files)
    assert amplitude.dtype == phase.dtype == np.float32
    np.testing.assert_allclose(amplitude[3:] * np.exp(1j * phase[3:]), image.object[3:], rtol=1e-5)
    assert np.isnan(amplitude[:3]).all()
    assert np.isnan(phase[:3]).all()
    with tifffile.TiffFile(files[0]) as file:
        (pixels, length), unit = file.pages[0].tags["XResolution"].value, file.imagej_metadata["unit"]
        assert unit == "um"
        assert length / pixels == pytest.approx(0.02, rel=1e-4)


@pytest.mark.contract("files.tiff.write")
def test_whole_numbers_carry_their_scale(tmp_path: Path) -> None:
    image = make_image(None)
    for file, values in zip(
        write_tiff(image, tmp_path / "image.tiff", dtype="uint16"), (np.abs, np.angle), strict=True
    ):
        with tifffile.TiffFile(file) as opened:
            codes, scale = opened.asarray(), opened.imagej_metadata
        assert codes.dtype == np.uint16
        assert (codes[:3] == 0).all()
        assert codes[3:].min() >= 1
        np.testing.assert_allclose(scale["c0"] + scale["c1"] * codes[3:], values(image.object[3:]), atol=1e-4)


@pytest.mark.contract("files.tiff.write")
def test_a_name_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.tif or \.tiff; found '\.png'"):
        write_tiff(make_image(), tmp_path / "image.png")


def open_frames(folder: Path, name: str) -> np.ndarray:
    stack = parse_array_ref(name, folder).open_frames()
    assert stack.shape == FRAMES.shape
    assert stack.dtype.newbyteorder("=") == FRAMES.dtype
    np.testing.assert_array_equal(stack[[5, 2]], FRAMES[[5, 2]])
    np.testing.assert_array_equal(np.concatenate(list(stack.chunks(5))), FRAMES)
    assert find_backing_files(stack) is not None
    return stack[:]


@pytest.mark.contract("files.tiff.read")
@pytest.mark.parametrize("how", ["plain", "imagej", "pages", "compressed", "big", "big endian", "raster"])
def test_a_stack_in_one_file(tmp_path: Path, how: str) -> None:
    path = tmp_path / "frames.tif"
    options: dict[str, object] = {
        "imagej": {"imagej": True},
        "compressed": {"compression": "zlib"},
        "big": {"bigtiff": True},
        "big endian": {"byteorder": ">"},
    }.get(how, {})  # type: ignore[assignment]
    if how == "pages":
        with tifffile.TiffWriter(path) as file:
            for frame in FRAMES:
                file.write(frame, contiguous=False)
    else:
        values = FRAMES.reshape(3, 4, 16, 20) if how == "raster" else FRAMES
        tifffile.imwrite(path, values, photometric="minisblack", **options)
    open_frames(tmp_path, "frames.tif")


@pytest.mark.contract("files.tiff.read")
def test_one_frame_in_each_of_many_files_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, frame in enumerate(FRAMES):
        tifffile.imwrite(tmp_path / f"frame_{number}.tif", frame)
    open_frames(tmp_path, "frame_*.tif")
    tifffile.imwrite(tmp_path / "frame_5.tif", FRAMES[5, :4])
    with pytest.raises(ScanError, match=r"frame_5\.tif: expected uint16 \(16, 20\), as in the first"):
        parse_array_ref("frame_*.tif", tmp_path).open_frames()[:]
    with pytest.raises(ScanError, match="expected files of such names; found none"):
        parse_array_ref("other_*.tif", tmp_path).open_frames()


@pytest.mark.contract("files.tiff.read")
def test_two_files_are_two_frames_and_a_stack_is_none_of_several_files(tmp_path: Path) -> None:
    for number in (1, 2):
        tifffile.imwrite(tmp_path / f"frame_{number}.tif", FRAMES[number])
    stack = parse_array_ref("frame_*.tif", tmp_path).open_frames()
    np.testing.assert_array_equal(stack[:], FRAMES[1:3])
    assert stack.shape == (2, 16, 20)
    for number in (1, 2):
        tifffile.imwrite(tmp_path / f"stack_{number}.tif", FRAMES[:3], photometric="minisblack")
    with pytest.raises(ScanError, match="expected one frame in each of several files"):
        parse_array_ref("stack_*.tif", tmp_path).open_frames()
    with tifffile.TiffWriter(tmp_path / "several.tif") as file:
        file.write(FRAMES[:3], photometric="minisblack", contiguous=False)
        file.write(FRAMES[:2, :8], photometric="minisblack", contiguous=False)
    with pytest.raises(ScanError, match=r"found uint16 .* and 1 more stacks"):
        parse_array_ref("several.tif", tmp_path).open_frames()


@pytest.mark.contract("files.tiff.read")
def test_frames_dark_and_mask_of_a_scan(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).poisson(50, (12, 16, 16)).astype(np.uint16)
    mask = np.ones((16, 16), np.uint8)
    mask[2] = 0
    for name, values in (("s", frames), ("dark", np.full((16, 16), 3, np.uint16)), ("mask", mask)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values)
    (tmp_path / "s.csv").write_text("x,y\n" + "".join(f"{3 * i},{i}\n" for i in range(12)))
    mapping = MappingConfig(frames="s.tif", positions_y="s.csv:y", positions_x="s.csv:x", positions_unit="px")
    config = ReadConfig(mapping=mapping, guess_probe=True, mask=str(tmp_path / "mask.tif"))
    scan = read_scan(tmp_path / "s.tif", config)
    np.testing.assert_array_equal(scan.frames[:], frames)
    np.testing.assert_array_equal(scan.mask, mask > 0)
    darker = read_scan(tmp_path / "s.tif", dataclasses.replace(config, dark=str(tmp_path / "dark.tif")))
    np.testing.assert_array_equal(darker.frames[:], frames.astype(np.float32) - 3)


@pytest.mark.contract("files.tiff.read")
def test_what_is_no_stack_of_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "frames.tif"
    tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    with pytest.raises(ScanError, match=r"without previews, as grey values"):
        parse_array_ref("frames.tif", tmp_path).open_frames()
    tifffile.imwrite(path, FRAMES, photometric="minisblack", compression="zlib")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ScanError, match=r"frames\.tif"):
        parse_array_ref("frames.tif", tmp_path).open_frames()[:]
    path.write_bytes(content[:12])
    with pytest.raises(ScanError, match=r"frames\.tif"):
        parse_array_ref("frames.tif", tmp_path).open_frames()[:]
