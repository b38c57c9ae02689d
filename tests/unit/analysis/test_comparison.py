"""Two reconstructions of any origin: what is free is taken out, what differs stays."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from torchptycho.analysis.comparison import (
    _multiply_neighbours,
    _place_on_grid,
    _place_on_reference,
    compare,
)
from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.errors import EvaluationError, ScanError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.io import read_reconstruction
from torchptycho.visualization.plot import plot_comparison


def make_object(shape: tuple[int, int] = (120, 132), seed: int = 0, sigma: float = 2.5) -> np.ndarray:
    """An object that is smooth enough for a sub-pixel shift and nowhere the same."""
    rng = np.random.default_rng(seed)
    amplitude, phase = (gaussian_filter(rng.normal(size=shape), sigma) for _ in range(2))
    image = (0.8 + 0.15 * amplitude / amplitude.std() / 3) * np.exp(0.5j * phase / phase.std())
    return image.astype(np.complex64)


def image_of(object: np.ndarray, origin_px: tuple[int, int] = (0, 0), pixel_m: float | None = None) -> Reconstruction:
    coverage = np.ones(object.shape, np.float32)
    return Reconstruction(
        object=object.astype(np.complex64),
        coverage=coverage,
        valid=coverage > 0,
        origin_px=origin_px,
        object_pixel_m=pixel_m,
    )


def turned(object: np.ndarray, ramp: tuple[float, float] = (0.06, -0.04), factor: complex = 1.7j) -> np.ndarray:
    """The same object in another gauge."""
    y, x = np.indices(object.shape)
    return object * np.exp(1j * (ramp[0] * y + ramp[1] * x)) * factor


NAME = "B against A"


@pytest.mark.contract("compare.gauge")
def test_phase_ramp_and_scale_make_no_difference() -> None:
    truth = make_object()
    found = compare(image_of(truth), image_of(turned(truth)))
    assert found.metrics[NAME].complex_nrmse < 0.01
    assert found.metrics[NAME].amplitude_factor == pytest.approx(1 / 1.7, rel=1e-2)
    assert found.notes == ()
    assert list(found.images) == ["A", "B"]


@pytest.mark.contract("compare.place")
def test_canvases_are_laid_on_each_other_by_their_origins() -> None:
    truth = make_object()
    found = compare(image_of(truth, (-7, 11)), image_of(truth[20:-10, 5:-30], (13, 16)))
    assert found.notes == ()
    assert found.metrics[NAME].complex_nrmse < 1e-3
    assert found.origin_px == (13, 16)
    assert found.mask.shape == (90, 97)


@pytest.mark.contract("compare.place")
def test_what_the_images_show_counts_where_the_origins_clearly_say_otherwise() -> None:
    truth = make_object()
    part = turned(truth[20:-10, 15:-30])
    found = compare(image_of(truth), image_of(part, (0, 0)))
    assert found.metrics[NAME].complex_nrmse < 0.01
    assert "B: moved by 20, 15 px (y, x), where it matches." in found.notes


@pytest.mark.contract("compare.place")
def test_a_rim_that_has_run_away_and_is_called_valid_does_not_hide_the_place() -> None:
    truth = make_object()
    part = turned(truth[10:-10, 15:-20])
    rng = np.random.default_rng(5)
    rim = np.ones(part.shape, bool)
    rim[8:-8, 8:-8] = False
    part[rim] = 200 * (rng.normal(size=(int(rim.sum()), 2)) @ (1, 1j))
    found = compare(image_of(truth), image_of(part, (0, 0)))
    # To a pixel, by the rim; what is left is found as any sub-pixel shift is.
    assert re.fullmatch(r"B: moved by (9|10|11), (14|15|16) px \(y, x\), where it matches\.", found.notes[0])


@pytest.mark.contract("compare.place")
@pytest.mark.parametrize("origin_px", [(-40, 70), (200, -90)])
def test_any_place_is_found_wherever_the_origins_are(origin_px: tuple[int, int]) -> None:
    truth = make_object()
    # The part begins above and to the left of the reference in one case, and below and to its right in the other.
    for reference, image, away in (
        (truth[30:, 25:], truth[:-20, :-15], (-30, -25)),
        (truth[:-30, :-25], truth[20:, 15:], (20, 15)),
    ):
        found, moved = _place_on_reference(image_of(turned(image), origin_px), image_of(reference, (5, -6)))
        assert found.origin_px == (5 + away[0], -6 + away[1])
        assert (
            moved
            == f"moved by {5 + away[0] - origin_px[0]}, {-6 + away[1] - origin_px[1]} px (y, x), where it matches."
        )


@pytest.mark.contract("compare.place")
def test_neighbour_products_are_free_of_phase_ramps_scale_and_what_is_not_valid() -> None:
    truth = make_object((40, 44))
    valid = np.ones(truth.shape, bool)
    valid[5:9, 10:20] = False
    image = dataclasses.replace(image_of(truth), valid=valid)
    plain = _multiply_neighbours(image)
    ramped = _multiply_neighbours(dataclasses.replace(image, object=turned(truth).astype(np.complex64)))
    other = np.where(valid, truth, 1e8)
    changed = _multiply_neighbours(dataclasses.replace(image, object=other.astype(np.complex64)))
    size = np.abs(truth[valid])
    wave = truth * np.minimum(1, 1.5 * np.median(size) / np.abs(truth)) / np.median(size)
    for axis, found in enumerate(plain):
        ahead = np.roll(valid, -1, axis) & valid
        ahead[(slice(None),) * axis + (-1,)] = False
        product = wave * np.roll(wave, -1, axis).conj()
        expected = np.where(ahead, product - product[ahead].mean(), 0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        # A phase ramp turns all products of an axis alike, a scale changes none.
        np.testing.assert_allclose(ramped[axis] / np.exp(-1j * (0.06, -0.04)[axis]), found, atol=1e-5)
        np.testing.assert_allclose(changed[axis], found, atol=1e-6)
    nothing = dataclasses.replace(image, valid=np.zeros(truth.shape, bool))
    assert not np.any(_multiply_neighbours(nothing))


@pytest.mark.parametrize("origin_px", [(0, 0), (-3, 2), (4, -5), (-9, 0), (0, 30), (3, 4)])
@pytest.mark.parametrize("grid_origin_px", [(0, 0), (-2, 3)])
def test_a_mask_is_laid_on_another_grid_pixel_by_pixel(
    origin_px: tuple[int, int], grid_origin_px: tuple[int, int]
) -> None:
    mask = np.random.default_rng(0).random((7, 9)) < 0.6
    placed = _place_on_grid(mask, origin_px, grid_origin_px, (10, 12))
    for y in range(10):
        for x in range(12):
            row, column = (y + grid_origin_px[0] - origin_px[0], x + grid_origin_px[1] - origin_px[1])
            inside = 0 <= row < 7 and 0 <= column < 9
            assert placed[y, x] == (inside and mask[row, column])


@pytest.mark.contract("compare.place")
def test_images_of_different_objects_are_not_moved_about() -> None:
    found = compare(image_of(make_object(seed=0)), image_of(make_object(seed=1)))
    assert found.notes == ()
    assert found.metrics[NAME].complex_nrmse > 0.3


@pytest.mark.contract("compare.pixels")
def test_finer_pixels_are_averaged_onto_the_coarser() -> None:
    fine = make_object((240, 264), sigma=6.0)
    coarse = 0.25 * sum(fine[i::2, j::2] for i in range(2) for j in range(2))
    found = compare(image_of(fine, pixel_m=5e-9), image_of(coarse, pixel_m=10e-9))
    # Squares of 2x2 pixels have their middle half a pixel away from the first of them.
    assert found.metrics[NAME].shift_px == (pytest.approx(0.25, abs=0.05), pytest.approx(0.25, abs=0.05))
    assert found.metrics[NAME].complex_nrmse < 0.02
    assert found.metrics[NAME].object_pixel_m == 10e-9
    assert found.notes == ("A: resampled from 5 nm to 10 nm pixels.",)


@pytest.mark.contract("compare.pixels")
def test_detail_that_the_coarser_pixels_cannot_hold_is_not_taken_for_coarser_detail() -> None:
    fine = make_object((240, 264), sigma=6.0)
    stripes = 1 + 0.2 * np.cos(2 * np.pi * np.arange(264) / 2.4)
    found = compare(image_of(fine * stripes, pixel_m=5e-9), image_of(fine[::2, ::2], pixel_m=10e-9))
    # 0.14 where every second pixel is taken as it is.
    assert found.metrics[NAME].complex_nrmse < 0.08


@pytest.mark.contract("compare.pixels")
def test_pixels_that_differ_by_a_little_are_brought_together() -> None:
    big = make_object((220, 220), sigma=5.0)
    rows = np.arange(180) * 1.1 + 5
    finer = big
    from scipy.ndimage import map_coordinates

    at = np.meshgrid(rows, rows, indexing="ij")
    coarser = map_coordinates(big.real, at, order=3) + 1j * map_coordinates(big.imag, at, order=3)
    found = compare(image_of(coarser, pixel_m=11e-9), image_of(finer, (-5, -5), pixel_m=10e-9))
    assert found.metrics[NAME].complex_nrmse < 0.03


@pytest.mark.contract("compare.pixels")
def test_pixels_of_another_experiment_are_refused() -> None:
    truth = make_object()
    with pytest.raises(EvaluationError, match=r"pixel sizes differ by more than 8 times: A 1 nm, B 50 nm"):
        compare(image_of(truth, pixel_m=1e-9), image_of(truth, pixel_m=50e-9))


@pytest.mark.contract("compare.pixels")
def test_an_unknown_pixel_is_taken_for_that_of_the_other_and_said() -> None:
    truth = make_object()
    found = compare(image_of(truth, pixel_m=1e-8), image_of(truth), names=("A", "theirs", "truth"))
    assert found.object_pixel_m == 1e-8
    assert found.notes == ("theirs: its pixel size is not known and was taken to be that of the others.",)


@pytest.mark.contract("compare.truth")
def test_with_a_truth_both_are_judged_by_it() -> None:
    truth = make_object()
    rng = np.random.default_rng(3)
    noise = gaussian_filter(rng.normal(size=(2, *truth.shape)), (0, 1, 1))
    worse = truth + 0.2 * (noise[0] + 1j * noise[1])
    found = compare(image_of(turned(truth)), image_of(worse), image_of(truth))
    assert list(found.metrics) == ["B against A", "A against truth", "B against truth"]
    assert found.metrics["A against truth"].complex_nrmse < 0.01 < found.metrics["B against truth"].complex_nrmse
    assert list(found.images) == ["A", "B", "truth"]
    np.testing.assert_allclose(found.images["truth"], truth[: found.mask.shape[0], : found.mask.shape[1]], rtol=1e-6)
    assert found.to_dict()["metrics"]["A against truth"]["n_pixels"] > 1000


@pytest.mark.contract("compare.mask")
def test_what_one_of_them_does_not_cover_is_not_compared() -> None:
    truth = make_object()
    hole = np.ones(truth.shape, bool)
    hole[30:60, 40:80] = False
    spoilt = np.where(hole, truth, 77)
    first = dataclasses.replace(image_of(truth), valid=hole)
    found = compare(first, image_of(spoilt))
    assert not found.mask[30:60, 40:80].any()
    assert found.metrics[NAME].complex_nrmse < 1e-3


def disc(shape: tuple[int, int], radius: float, middle: tuple[float, float]) -> np.ndarray:
    y, x = np.indices(shape)
    return np.hypot(y - middle[0], x - middle[1]) < radius


@pytest.mark.contract("compare.mask")
@pytest.mark.contract("files.reconstruction.unmeasured")
@pytest.mark.parametrize("start", [0, 1])
def test_what_a_file_without_coverage_left_untouched_is_not_compared(tmp_path: Path, start: int) -> None:
    truth = make_object()
    covered = disc(truth.shape, 45, (60, 66))
    image = np.where(covered, turned(truth, factor=1), start).astype(np.complex64)
    np.savez(tmp_path / "ours.npz", object=image, coverage=covered.astype(np.float32), valid=covered)
    np.savez(tmp_path / "product.npz", object=image[None])
    with h5py.File(tmp_path / "product.h5", "w") as file:
        file["object"] = image[None]
    ours, *products = (read_reconstruction(tmp_path / name) for name in ("ours.npz", "product.npz", "product.h5"))
    own = evaluate(ours, truth)
    assert own.complex_nrmse < 0.01
    for product in products:
        np.testing.assert_array_equal(product.valid, covered)
        found = compare(ours, product, image_of(truth), names=("ours", "theirs", "truth"))
        assert found.metrics["theirs against truth"].complex_nrmse < 0.01
        assert found.metrics["theirs against truth"].n_pixels == own.n_pixels
        assert evaluate(product, truth).n_pixels == own.n_pixels
        n_unmeasured = int((~covered).sum())
        assert found.notes[0].startswith(f"theirs: {n_unmeasured} of {covered.size} pixels are not valid")


@pytest.mark.contract("files.reconstruction.unmeasured")
def test_zeros_of_an_image_made_in_memory_are_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    truth = make_object()
    covered = disc(truth.shape, 45, (60, 66))
    assert evaluate(image_of(np.where(covered, truth, 0)), truth).complex_nrmse < 1e-3
    assert evaluate(image_of(np.where(covered, truth, 0)), truth).n_pixels == int(covered.sum())
    with caplog.at_level(logging.WARNING):
        found = evaluate(image_of(truth), np.where(covered, truth, 0))
    assert found.complex_nrmse < 1e-3
    assert f"truth: {int((~covered).sum())} covered pixels are 0 out to its edge and are not judged" in caplog.text


@pytest.mark.contract("compare.truth")
def test_with_a_truth_both_are_judged_on_the_pixels_that_both_cover() -> None:
    truth = make_object()
    left, right = (disc(truth.shape, 42, (60, column)) for column in (50, 80))
    noise = np.random.default_rng(4).normal(size=truth.shape)
    # The noise is where the first alone looks.
    noisy = truth * np.exp(1j * np.where(right, 0, noise))
    images = [
        dataclasses.replace(image_of(one, (3, -2)), coverage=mask.astype(np.float32), valid=mask)
        for one, mask in ((noisy, left), (truth, right))
    ]
    metrics = compare(*images, image_of(truth, (3, -2))).metrics
    assert evaluate(images[0], truth, truth_origin_px=(3, -2)).complex_nrmse > 0.2
    n_both = int((left & right).sum())
    for name in ("A against truth", "B against truth"):
        assert metrics[name].complex_nrmse < 0.02
        assert metrics[name].n_pixels == metrics["A against truth"].n_pixels
        assert 0.95 * n_both < metrics[name].n_pixels <= n_both


def test_images_of_different_parts_of_a_truth_cannot_be_judged_together() -> None:
    truth = make_object()
    halves = [
        dataclasses.replace(image_of(truth), coverage=mask.astype(np.float32), valid=mask)
        for mask in (np.indices(truth.shape)[1] < 60, np.indices(truth.shape)[1] >= 60)
    ]
    with pytest.raises(EvaluationError, match="no pixel to compare"):
        compare(*halves, image_of(truth))


def test_nothing_in_common_is_an_error() -> None:
    truth = make_object()
    nothing = dataclasses.replace(image_of(truth), valid=np.zeros(truth.shape, bool))
    with pytest.raises(EvaluationError, match="no pixel to compare"):
        compare(nothing, image_of(truth))


@pytest.mark.contract("compare.picture")
def test_picture_is_small_and_made_with_its_folder(tmp_path: Path) -> None:
    truth = make_object()
    found = compare(image_of(truth), image_of(turned(truth)), image_of(truth))
    path = plot_comparison(found, tmp_path / "new" / "compare.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert 20_000 < path.stat().st_size < 900_000


class TestPtyPy:
    def write(self, path: Path, image: np.ndarray, **more: object) -> Path:
        with h5py.File(path, "w") as file:
            told: dict[str, object] = {"data": image[None].astype(np.complex128), "_psize": [8e-9, 8e-9],
                                       "_origin": [-80e-9, 160e-9]}  # fmt: skip
            for name, value in (told | more).items():
                file[f"content/obj/Sscan00G00/{name}"] = value
            file["content/probe/Sscan00G00/data"] = np.ones((1, 8, 8), complex)
        return path

    @pytest.mark.contract("files.ptyr")
    def test_object_pixel_and_place_are_read(self, tmp_path: Path) -> None:
        truth = make_object()
        image = read_reconstruction(self.write(tmp_path / "a.ptyr", truth))
        np.testing.assert_array_equal(image.object, truth)
        assert image.object_pixel_m == 8e-9
        assert image.origin_px == (-10, 20)

    @pytest.mark.contract("files.ptyr")
    def test_it_compares_with_our_own(self, tmp_path: Path) -> None:
        truth = make_object()
        theirs = read_reconstruction(self.write(tmp_path / "a.ptyr", turned(truth[:, :-7])))
        assert compare(image_of(truth, (-10, 20), 8e-9), theirs).metrics[NAME].complex_nrmse < 0.01

    @pytest.mark.contract("files.ptyr")
    def test_objects_of_several_scans_and_slices_and_bad_pixels_are_refused(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.ptyr", make_object())
        with h5py.File(path, "a") as file:
            file["content/obj/Sscan01G00/data"] = make_object()[None]
        with pytest.raises(ScanError, match="expected the object of one scan; found Sscan00G00, Sscan01G00"):
            read_reconstruction(path)
        slices = np.stack([make_object()] * 2)[None]
        with pytest.raises(ScanError, match=r"expected a complex object .* Save one of them"):
            read_reconstruction(self.write(tmp_path / "b.ptyr", slices[0]))
        with pytest.raises(ScanError, match=r"_psize.*two numbers in metres"):
            read_reconstruction(self.write(tmp_path / "c.ptyr", make_object(), _psize=[1.0, np.nan]))

    @pytest.mark.contract("files.ptyr")
    def test_a_file_of_something_else_names_what_is_read(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["content/obj"] = 3.0
        with pytest.raises(ScanError, match=r"a \.ptyr file"):
            read_reconstruction(tmp_path / "x.h5")


def test_pixel_of_a_product_in_npz_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "product.npz", object=make_object()[None], object_pixel_height_m=np.array(7e-9))
    assert read_reconstruction(tmp_path / "product.npz").object_pixel_m == 7e-9
