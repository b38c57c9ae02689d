"""Figures of merit and registration: what is meant to be the same as the oracle's, and what differs on purpose."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from strategies import seeds

from torchptycho.analysis import metrics
from torchptycho.analysis.evaluation import evaluate
from torchptycho.analysis.registration import MAX_RAMP_RAD_PER_PX, align, fourier_shift
from torchptycho.core.config import SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.simulation import make_object

oracle = pytest.importorskip("tf_reference", reason=MISSING)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A truth and an image of it, in amplitude about 1 and phase below 1 rad: related, but not the same."""

    height: int
    width: int
    error: float
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def _draw(self, count: int) -> np.ndarray:
        values = np.random.default_rng(self.seed).normal(size=(count, *self.shape))
        return ndimage.gaussian_filter(values, (0, 0.7, 0.7), mode="wrap")

    @property
    def truth(self) -> np.ndarray:
        amplitude, phase, *_ = self._draw(4)
        return np.asarray((1 + 0.3 * np.tanh(amplitude)) * np.exp(0.7j * np.tanh(phase)))

    @property
    def image(self) -> np.ndarray:
        *_, real, imaginary = self._draw(4)
        return np.asarray(self.truth + self.error * (real + 1j * imaginary))

    @property
    def amplitudes(self) -> tuple[np.ndarray, np.ndarray]:
        return np.abs(self.truth), np.abs(self.image)


edges = st.integers(12, 64)


@st.composite
def pairs(draw: st.DrawFn, square: bool = False, lowest_px: int = 12) -> Pair:
    height, width = (draw(st.integers(lowest_px, 64)) for _ in range(2))
    return Pair(height, height if square else width, draw(st.floats(0.01, 1)), draw(seeds))


def whole(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape, dtype=bool)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float64)


def objects(kind: str, size_px: int, seed: int) -> np.ndarray:
    config = SimulateConfig(object_px=size_px, object_kind=kind)  # type: ignore[arg-type]
    return make_object(config, np.random.default_rng(seed)).astype(np.complex128)


def reconstruction(image: np.ndarray, origin_px: tuple[int, int] = (0, 0)) -> Reconstruction:
    return Reconstruction(
        object=image.astype(np.complex64),
        coverage=np.ones(image.shape, np.float32),
        valid=whole(image),
        origin_px=origin_px,
    )


# ---- what agrees ---------------------------------------------------------------------------------------------------


@pytest.mark.contract("parity.ring-correlation")
@given(pairs(square=True))
def test_ring_correlation_of_real_images(pair: Pair) -> None:
    """Of real images the sum over a ring is real, so that its modulus says as much; up to Nyquist, without a window."""
    _, curve, _ = metrics.fourier_ring_correlation(*pair.amplitudes, taper=0)
    theirs = oracle.FSC(*pair.amplitudes)[1 : pair.height // 2 + 1]
    assert_agree(np.abs(curve), theirs, "parity.ring-correlation", "oracle_double")


@pytest.mark.contract("parity.ring-correlation")
@given(pairs(square=True))
def test_ring_correlation_of_complex_images(pair: Pair) -> None:
    """The product's at two phases, a quarter turn apart, are the parts of the number whose modulus the oracle takes."""
    (_, real, _), (_, imaginary, _) = (
        metrics.fourier_ring_correlation(pair.truth, factor * pair.image, taper=0) for factor in (1, 1j)
    )
    theirs = oracle.FSC(pair.truth, pair.image)[1 : pair.height // 2 + 1]
    assert_agree(np.hypot(real, imaginary), theirs, "parity.ring-correlation", "oracle_double")


@pytest.mark.contract("parity.ssim")
@given(pairs())
def test_structural_similarity_of_amplitudes(pair: Pair) -> None:
    truth, image = pair.amplitudes
    theirs = oracle.eval_reconstruction(pair.image, pair.truth, offset=0)["ssim"][0]
    mine = metrics.masked_ssim(image * (truth.mean() / image.mean()), truth, whole(truth))
    assert_agree(number(mine), number(theirs), "parity.ssim", "oracle_double")


@pytest.mark.contract("parity.psnr")
@given(pairs())
def test_peak_signal_to_noise_ratio(pair: Pair) -> None:
    """Apart from the peak, 1 here and 255 there."""
    truth, image = pair.amplitudes
    mine = metrics.psnr_db(float(np.mean((truth - image) ** 2)))
    theirs = oracle.psnr(truth, image, normalize=False) - 20 * math.log10(255)
    assert_agree(number(mine + 100), number(theirs + 100), "parity.psnr", "oracle_double")
    assert oracle.mse(truth, image, normalize=False) == pytest.approx(10 ** (-mine / 10), rel=1e-12)


@pytest.mark.contract("parity.phase-plane")
@given(pairs(lowest_px=32), st.floats(-0.03, 0.03), st.floats(-0.03, 0.03))
def test_phase_plane_without_wraps(pair: Pair, along_y: float, along_x: float) -> None:
    """Both find what was added, each in its own way; the product to a 500th of a turn over the field."""
    y, x = np.indices(pair.shape)
    plane = along_y * (y - pair.height / 2) + along_x * (x - pair.width / 2)
    image = pair.truth * np.exp(1j * plane)
    flat = oracle.fit_and_remove_plane(np.angle(image), np.angle(pair.truth))
    theirs = np.angle(image) - flat
    slopes = np.array([theirs[-1, 0] - theirs[0, 0], theirs[0, -1] - theirs[0, 0]]) / (np.array(pair.shape) - 1)
    np.testing.assert_allclose(slopes, [along_y, along_x], atol=1e-9)
    found = align(image, pair.truth, whole(image), max_shift_px=0).ramp_rad_per_px
    np.testing.assert_allclose(found, slopes, atol=1.01 * math.pi / 500 / min(pair.shape))


@pytest.mark.contract("parity.translation")
@given(seeds, st.integers(-4, 4), st.integers(-4, 4))
def test_whole_translations_of_rough_objects(seed: int, dy: int, dx: int) -> None:
    rng = np.random.default_rng(seed)
    field = (1 + 0.2 * rng.normal(size=(72, 80))) * np.exp(0.3j * rng.normal(size=(72, 80)))
    truth = field[6:-6, 6:-6]
    image = field[6 + dy : 66 + dy, 6 + dx : 74 + dx]
    theirs = oracle.find_translation_offset(image, truth)
    mine = align(image, truth, whole(truth)).shift_px
    np.testing.assert_allclose(theirs, [dy, dx], atol=0.04)
    np.testing.assert_allclose(mine, [dy, dx], atol=0.04)


# ---- what does not, on purpose -------------------------------------------------------------------------------------


@pytest.mark.contract("deviation.frc-modulus")
@given(pairs(square=True), st.floats(0, 2 * math.pi))
def test_a_wrong_phase_does_not_count_in_the_oracles_ring_correlation(pair: Pair, phase: float) -> None:
    turned = pair.truth * np.exp(1j * phase)
    _, curve, _ = metrics.fourier_ring_correlation(turned, pair.truth)
    np.testing.assert_allclose(oracle.FSC(turned, pair.truth), 1, atol=1e-9)
    np.testing.assert_allclose(curve, math.cos(phase), atol=1e-9)


@pytest.mark.contract("deviation.frc-corners")
@given(pairs(square=True), seeds)
def test_the_oracles_ring_correlation_goes_on_to_the_corners(pair: Pair, seed: int) -> None:
    """Beyond Nyquist there are corners only; the last ring may be a single pixel, which correlates with anything."""
    truth = pair.amplitudes[0]
    other = np.random.default_rng(seed).normal(size=pair.shape)
    theirs = oracle.FSC(truth, other)
    frequency, curve, pixels = metrics.fourier_ring_correlation(truth, other)
    n_px = pair.height
    assert len(theirs) == round(math.hypot(n_px // 2, n_px // 2)) + 1 > len(curve) + 2
    assert frequency[-1] == n_px // 2 / n_px
    assert pixels.min() > 4
    if n_px % 2 == 0 and round(math.hypot(n_px / 2, n_px / 2 - 1)) < len(theirs) - 1:
        assert theirs[-1] == pytest.approx(1)
    # Of an image with itself the oracle gives a cutoff beyond any frequency that the pixels hold along an axis.
    same = oracle.frc_cutoffs(truth, truth)
    assert same.frc50 == same.frc1over7 == len(theirs) > n_px / 2 + 2
    frequency, curve, _ = metrics.fourier_ring_correlation(truth, truth)
    assert metrics.frc_crossing(frequency, curve, 0.5) == frequency[-1]


@pytest.mark.contract("deviation.frc-window")
@pytest.mark.parametrize("seed", range(4))
def test_the_jump_between_opposite_edges_correlates_in_the_oracle(seed: int) -> None:
    """Two images that share a slope, and otherwise nothing."""
    rng = np.random.default_rng(seed)
    slope = np.indices((64, 64)).sum(0) / 8
    first, second = (slope + 0.2 * rng.normal(size=(64, 64)) for _ in range(2))
    high = slice(12, 33)
    theirs = oracle.FSC(first, second)[high]
    _, curve, _ = metrics.fourier_ring_correlation(first, second)
    assert theirs.mean() > 0.4
    assert np.abs(curve[high.start - 1 :]).mean() < 0.2


@pytest.mark.contract("deviation.psnr-peak")
@given(pairs())
def test_the_oracles_peak_is_255(pair: Pair) -> None:
    """An image of nothing but zeros, for a truth of about 1, has 48 dB more there, which looks like a good one."""
    truth = pair.amplitudes[0]
    nothing = np.zeros_like(truth)
    theirs = oracle.psnr(truth, nothing, normalize=False)
    mine = metrics.psnr_db(float(np.mean((truth - nothing) ** 2)))
    assert theirs - mine == pytest.approx(48.13, abs=0.01)
    assert mine < 1 < 45 < theirs


@pytest.mark.contract("deviation.ratio-of-means")
@given(pairs(), st.floats(0.1, 10))
def test_the_oracles_amplitude_factor_is_not_the_best_one(pair: Pair, factor: float) -> None:
    """A scale error is invisible in both. The ratio of means is never the least-squares factor where there is noise."""
    truth, image = pair.amplitudes
    assert oracle.mse(truth, factor * truth) < 1e-25
    mine = align(pair.image, pair.truth, whole(truth), max_shift_px=0)
    bare = np.abs(mine.object)
    theirs = oracle.mse(truth, image)
    assert np.mean((bare - truth) ** 2) < theirs
    assert oracle.mse(truth, factor * image) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.contract("deviation.psnr-shift")
@given(pairs(), st.floats(1.1, 10))
def test_the_oracles_shift_makes_an_error_of_a_scale(pair: Pair, factor: float) -> None:
    """Both images are lowered by one number, but the factor that follows is that of the means before."""
    truth = pair.amplitudes[0]
    lowest = truth.min()
    expected = 20 * math.log10(255 / (lowest * (1 - 1 / factor)))
    assert oracle.psnr(truth, factor * truth, shift=True) == pytest.approx(expected, rel=1e-6)
    assert oracle.psnr(truth, factor * truth, shift=False) > 250
    found = align((factor * truth).astype(complex), truth.astype(complex), whole(truth), max_shift_px=0)
    assert metrics.psnr_db(float(np.mean(np.abs(found.object - truth) ** 2))) > 250


@pytest.mark.contract("deviation.phase-ssim")
@given(pairs())
def test_a_flat_phase_is_similar_to_any_in_the_oracle(pair: Pair) -> None:
    """Its data range is a whole turn, so that what varies by a tenth of it is all but constant."""
    weak = np.exp(0.2j * np.angle(pair.truth))
    theirs = oracle.eval_reconstruction(np.abs(weak) + 0j, weak, offset=0, phase_align_method="mean")["ssim"][1]
    phase = np.angle(weak)
    mine = metrics.masked_ssim(0 * phase, phase - phase.mean(), whole(phase))
    assert theirs > 0.8
    assert mine < 0.3


@pytest.mark.contract("deviation.ms-ssim-floor")
@given(pairs(lowest_px=32))
def test_the_oracles_similarity_over_scales_is_never_negative(pair: Pair) -> None:
    """The weights of the scales that are left out are missing, so that its smallest value depends on the size."""
    truth = pair.amplitudes[0]
    inverted = 2 * truth.mean() - truth
    scales = sum(math.ceil(min(pair.shape) / 2**k) >= 7 for k in range(5))
    least = 1e-4 ** sum((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)[:scales])
    assert oracle.ms_ssim(truth, inverted) == pytest.approx(least, rel=1e-9)
    assert metrics.masked_ssim(inverted, truth, whole(truth)) < -0.3


@pytest.mark.contract("deviation.plane-wraps")
@given(seeds, st.floats(0.15, 0.3), st.floats(-0.3, 0.3))
def test_a_plane_that_wraps_is_not_found_by_the_oracle(seed: int, along_y: float, along_x: float) -> None:
    assert max(along_y, abs(along_x)) < MAX_RAMP_RAD_PER_PX
    pair = Pair(64, 64, 0.1, seed)
    y, x = np.indices(pair.shape)
    image = pair.truth * np.exp(1j * (along_y * y + along_x * x))
    left = oracle.fit_and_remove_plane(np.angle(image), np.angle(pair.truth)) - np.angle(pair.truth)
    mine = np.angle(align(image, pair.truth, whole(image), max_shift_px=0).object / pair.truth)
    assert np.std(left) > 1
    assert np.abs(mine).max() < 0.5


@pytest.mark.contract("deviation.phase-error-wraps")
@given(pairs(square=True, lowest_px=32), st.floats(0.9, 1.1), st.sampled_from(["mean", "plane"]))
def test_a_constant_phase_of_half_a_turn_is_an_error_in_the_oracle(pair: Pair, half_turns: float, method: str) -> None:
    """Ptychography leaves it free. Where it makes the phase jump, the oracle's errors are of 2 pi; here they wrap."""
    turned = pair.truth * np.exp(1j * math.pi * half_turns)
    found = oracle.eval_reconstruction(turned, pair.truth, offset=0, phase_align_method=method)
    assert found["mae"][1] > 0.5
    assert evaluate(reconstruction(turned), pair.truth, max_shift_px=0).phase_mae_rad < 0.02


@pytest.mark.contract("deviation.phase-only-registration")
@pytest.mark.parametrize("kind", ["dead_leaves", "lines"])
def test_an_image_that_is_less_sharp_than_the_truth_is_misplaced_by_the_oracle(kind: str) -> None:
    """It weighs all frequencies alike, also those which the image does not hold; the product by their power."""
    mine, theirs = [], []
    for seed in range(8):
        field = objects(kind, 96, seed)
        shift = np.random.default_rng(seed).uniform(-2.5, 2.5, 2)
        soft = ndimage.gaussian_filter(field.real, 1) + 1j * ndimage.gaussian_filter(field.imag, 1)
        image, truth = fourier_shift(soft, tuple(-shift))[8:-8, 8:-8], field[8:-8, 8:-8]
        theirs.append(np.abs(oracle.find_translation_offset(image, truth) - shift).max())
        mine.append(np.abs(np.array(align(image, truth, whole(truth)).shift_px) - shift).max())
    assert np.median(theirs) > 0.15
    assert np.max(mine) < 0.05


@pytest.mark.contract("deviation.shift-wraps")
@given(st.floats(0.5, 2.9), st.sampled_from([-1, 1]))
def test_what_leaves_one_side_comes_in_at_the_other_in_the_oracle(amount: float, sign: int) -> None:
    """A bright upper half, moved along y: the oracle brings it in from below."""
    image = np.where(np.arange(48)[:, None] < 24, 10.0, 1.0) * np.ones((48, 40)) + 0j
    offset = np.array([sign * amount, 0.0])
    theirs, mine = oracle.fourier_shift(image, offset), fourier_shift(image, (sign * amount, 0.0))
    rim = 0 if sign > 0 else -1
    beside = image[rim, 0].real
    assert np.abs(theirs[rim] - beside).min() > 2.5
    assert np.abs(mine[rim] - beside).max() < 1.5


@pytest.mark.contract("deviation.alignment-by-middle")
@given(seeds, st.integers(1, 4), st.integers(0, 4))
def test_the_oracle_lays_middle_on_middle(seed: int, above: int, left: int) -> None:
    """A reconstruction that reaches further on two sides; the product knows where it begins."""
    truth = objects("dead_leaves", 72, seed)
    scan_yx = np.array([[24.0, 24.0], [48.0, 48.0]])
    y0, y1, x0, x1 = oracle.get_scan_area_bbox(scan_yx, 16)
    corner = y0 - 2 * above, x0 - 2 * left
    image = truth[corner[0] : y1, corner[1] : x1]
    theirs, area = oracle.align_for_evaluation(image, truth, scan_yx, 16)
    np.testing.assert_array_equal(theirs, truth[y0 - above : y1 - above, x0 - left : x1 - left])
    np.testing.assert_array_equal(area, truth[y0:y1, x0:x1])
    found = evaluate(reconstruction(image, corner), truth, max_shift_px=0)
    assert found.amplitude_mae < 1e-6 < oracle.mae(np.abs(area), np.abs(theirs))
