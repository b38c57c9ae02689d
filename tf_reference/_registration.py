"""Bringing a reconstruction and a truth onto one grid, in NumPy; images are (H, W), places and offsets (y, x)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tf_reference._metrics import center_crop


def find_translation_offset(image: np.ndarray, reference: np.ndarray, upsample_factor: int = 50) -> np.ndarray:
    """(dy, dx) by which the modulus of `image` is to be moved, to 1 / `upsample_factor` px.

    The place of the maximum of the phase-only correlation, to which every frequency contributes alike.
    """
    from skimage.registration import phase_cross_correlation

    moduli = np.abs(reference), np.abs(image)
    offset = phase_cross_correlation(*moduli, upsample_factor=upsample_factor)[0]  # type: ignore[no-untyped-call]
    return np.asarray(offset, dtype=np.float64)


def fourier_shift(image: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Image moved by a fraction of a pixel, out(r) = in(r - offset); what leaves one side comes in at the other."""
    moved = np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(image), offset))
    return moved if np.iscomplexobj(image) else moved.real


def apply_shift_and_crop(
    image: np.ndarray, reference: np.ndarray, offset: np.ndarray, border_crop: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """`image` moved by `offset`, and `reference`, both without `border_crop` pixels on each side."""
    return center_crop_border(fourier_shift(image, offset), border_crop), center_crop_border(reference, border_crop)


def register_and_align(
    image: np.ndarray, reference: np.ndarray, upsample_factor: int = 50, border_crop: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """`find_translation_offset` and `apply_shift_and_crop` by what it finds."""
    offset = find_translation_offset(image, reference, upsample_factor)
    return apply_shift_and_crop(image, reference, offset, border_crop)


def get_scan_area_bbox(scan_yx: np.ndarray, patch_size: float) -> tuple[int, int, int, int]:
    """(y start, y stop, x start, x stop) of the whole pixels that patches about positions (n, 2) touch."""
    low = np.floor(scan_yx.min(axis=0) - patch_size / 2).astype(int)
    high = np.ceil(scan_yx.max(axis=0) + patch_size / 2).astype(int)
    return int(low[0]), int(high[0]), int(low[1]), int(high[1])


def align_for_evaluation(
    image: np.ndarray, truth: np.ndarray, scan_yx: np.ndarray, patch_size: float
) -> tuple[np.ndarray, np.ndarray]:
    """The scanned area of the truth, and as much of the middle of the reconstruction: nothing is looked for.

    Where one of the two is smaller than the other, both are cut to the smaller, about their middles.
    """
    y0, y1, x0, x1 = get_scan_area_bbox(scan_yx, patch_size)
    area = truth[max(y0, 0) : y1, max(x0, 0) : x1]
    height, width = (min(edges) for edges in zip(image.shape, area.shape, strict=True))
    return center_crop(image, height, width), center_crop(area, height, width)


def center_crop_border(image: np.ndarray, border: int) -> np.ndarray:
    """An image without `border` pixels on each side."""
    return image[border : image.shape[0] - border, border : image.shape[1] - border]
