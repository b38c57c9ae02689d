"""Reconstructions of any origin side by side: on one grid, in one gauge, and how far they agree."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
from jaxtyping import Bool, Complex

from torchptycho.analysis.evaluation import Metrics, evaluate, measure
from torchptycho.analysis.registration import MAX_SHIFT_PX
from torchptycho.analysis.resampling import resample_image
from torchptycho.analysis.truth_alignment import AlignedPair, align_to_truth
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction, project_slices
from torchptycho.io.inputs import as_reconstruction

__all__ = ["Comparison", "compare"]

# Images whose pixel sizes differ by more than this factor are not comparable.
_MAX_PIXEL_RATIO = 8.0
# Images are moved from their stated positions only if the best match is better than every other by this factor: images
# of different objects and periodic ones have many similar matches.
_MIN_PEAK_RATIO = 2.0
_PEAK_PX = 8
_MAX_RELATIVE_AMPLITUDE = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Two or three images on their common grid, in the gauge of the last.

    Arguments:
        images: [H, W] by name: the first, the second, and the ground truth if given.
        mask: [H, W] pixels in which all of them are compared.
        origin_px: (y, x) of [0, 0] in pixels of the reference.
        object_pixel_m: edge of a pixel, or None.
        metrics: by "name against name".
        notes: the steps of the registration, one sentence each.
    """

    images: dict[str, Complex[np.ndarray, "h w"]]
    mask: Bool[np.ndarray, "h w"]
    origin_px: tuple[int, int]
    object_pixel_m: float | None
    metrics: dict[str, Metrics]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {
            "metrics": {name: metrics.to_dict() for name, metrics in self.metrics.items()},
            "object_pixel_m": self.object_pixel_m,
            "n_pixels": int(self.mask.sum()),
            "origin_px": list(self.origin_px),
            "notes": list(self.notes),
        }


def compare(
    first: Reconstruction | str | Path,
    second: Reconstruction | str | Path,
    truth: Reconstruction | str | Path | None = None,
    *,
    names: tuple[str, str, str] = ("A", "B", "truth"),
    min_coverage: float = 0.1,
) -> Comparison:
    """Register reconstructions to a common grid and gauge, and compare them.

    The reference is the ground truth, else the first image. Images with finer pixels are averaged to the coarsest ones.
    Images are aligned by their origins, or by their content if it clearly contradicts the origins. Sub-pixel shift,
    phase plane, phase and scale are then removed as in `evaluate`.

    Of a thick object the product of its slices is compared.

    Arguments:
        names: of the two images and the ground truth, for `metrics`.
        min_coverage: pixels with less coverage, in either image, are left out.

    With a ground truth, both images are compared with it on the pixels that both cover.

    Raises:
        EvaluationError: the pixel sizes differ too much, or the images do not overlap enough.
    """
    # A copy, so that an image may be compared with itself.
    inputs = [as_reconstruction(first, "first"), dataclasses.replace(as_reconstruction(second, "second"))]
    inputs += [] if truth is None else [as_reconstruction(truth, "truth")]
    inputs = [project_slices(each) for each in inputs]
    images, notes = _resample_to_coarsest(inputs, names)
    reference_index = 0 if truth is None else len(images) - 1
    reference = images[reference_index]
    for i, image in enumerate(images):
        if i != reference_index:
            images[i], moved = _place_on_reference(image, reference)
            notes += [f"{names[i]}: {moved}"] if moved else []
    for name, image in zip(names, images, strict=False):
        unmeasured = int((~image.valid).sum())
        if unmeasured and not image.has_coverage:
            notes.append(
                f"{name}: {unmeasured} of {image.valid.size} pixels are not valid and are not compared (exactly 0, the "
                "value of an untouched start, or marked so)."
            )
    reliable = [_find_reliable(image, min_coverage) for image in images]
    metrics = {f"{names[1]} against {names[0]}": _compare_pair(images[1], images[0], reliable[0], min_coverage)}
    known = np.where(reliable[reference_index], reference.object, np.nan)
    if truth is not None:
        # Both are judged on the same pixels: a smaller or easier part of the field is no better image.
        for image, good in zip(images[:2], reliable[:2], strict=True):
            known[~_place_on_grid(good, image.origin_px, reference.origin_px, known.shape)] = np.nan
    pairs = {
        name: align_to_truth(image, known, truth_origin_px=reference.origin_px, min_coverage=min_coverage)
        for i, (name, image) in enumerate(zip(names, images, strict=False))
        if i != reference_index
    }
    if truth is not None:
        pairs = _share_mask(pairs, reference.origin_px, known.shape)
        metrics |= {
            f"{name} against {names[2]}": measure(pair, reference.object_pixel_m) for name, pair in pairs.items()
        }
    shown, mask, origin_px = _crop_to_common(pairs, names[2] if truth is not None else names[0])
    order = [name for name in names if name in shown]
    return Comparison(
        images={name: shown[name] for name in order},
        mask=mask,
        origin_px=origin_px,
        object_pixel_m=reference.object_pixel_m,
        metrics=metrics,
        notes=tuple(notes),
    )


def _find_reliable(image: Reconstruction, min_coverage: float) -> Bool[np.ndarray, "h w"]:
    """Find the pixels of an image that can be compared."""
    good: np.ndarray = image.valid & (image.coverage > min_coverage) & np.isfinite(image.object)
    if not image.has_coverage:
        good &= image.object != 0
    return good


def _compare_pair(
    image: Reconstruction, other: Reconstruction, reliable: Bool[np.ndarray, "h w"], min_coverage: float
) -> Metrics:
    """Compare an image with the reliable pixels of another one."""
    known = np.where(reliable, other.object, np.nan)
    return evaluate(image, known, truth_origin_px=other.origin_px, min_coverage=min_coverage)


def _place_on_grid(
    mask: Bool[np.ndarray, "h w"], origin_px: tuple[int, int], grid_origin_px: tuple[int, int], shape: tuple[int, ...]
) -> Bool[np.ndarray, "y x"]:
    """Place a mask on another grid of the same pixels; pixels outside the mask are False."""
    placed = np.zeros(shape, bool)
    ours, its = [], []
    for origin, start, n, size in zip(origin_px, grid_origin_px, shape, mask.shape, strict=True):
        first = origin - start
        ours.append(slice(max(first, 0), max(min(first + size, n), 0)))
        its.append(slice(max(-first, 0), max(min(size, n - first), 0)))
    placed[tuple(ours)] = mask[tuple(its)]
    return placed


def _share_mask(
    pairs: dict[str, AlignedPair], origin_px: tuple[int, int], shape: tuple[int, ...]
) -> dict[str, AlignedPair]:
    """Give all pairs the mask of the pixels that are in each of their masks."""
    masks = [_place_on_grid(pair.mask, pair.origin_px, origin_px, shape) for pair in pairs.values()]
    common = np.logical_and.reduce(masks)
    if not common.any():
        raise EvaluationError("no pixel is covered by both reconstructions.")
    return {
        name: dataclasses.replace(pair, mask=_place_on_grid(common, origin_px, pair.origin_px, pair.mask.shape))
        for name, pair in pairs.items()
    }


def _resample_to_coarsest(
    images: list[Reconstruction], names: tuple[str, ...]
) -> tuple[list[Reconstruction], list[str]]:
    """Resample all images to the coarsest pixels."""
    sizes = {name: image.object_pixel_m for name, image in zip(names, images, strict=False)}
    known = {name: size for name, size in sizes.items() if size}
    notes: list[str] = []
    if not known:
        return images, notes
    coarsest = max(known.values())
    finest = min(known.values())
    if coarsest > _MAX_PIXEL_RATIO * finest:
        sizes_text = ", ".join(f"{name} {size * 1e9:.4g} nm" for name, size in known.items())
        raise EvaluationError(
            f"pixel sizes differ by more than {_MAX_PIXEL_RATIO:g} times: {sizes_text}. These are not images of one "
            "experiment, or a file states a wrong pixel size."
        )
    for name in (name for name in sizes if name not in known):
        notes.append(f"{name}: its pixel size is not known and was taken to be that of the others.")
    out = []
    for (name, size), image in zip(sizes.items(), images, strict=True):
        factor = coarsest / (size or coarsest)
        if (factor - 1) * max(image.object.shape) < 0.5:
            out.append(dataclasses.replace(image, object_pixel_m=coarsest))
            continue
        notes.append(f"{name}: resampled from {coarsest / factor * 1e9:.4g} nm to {coarsest * 1e9:.4g} nm pixels.")
        out.append(resample_image(image, factor, coarsest))
    return out, notes


def _place_on_reference(image: Reconstruction, reference: Reconstruction) -> tuple[Reconstruction, str]:
    """Move the image to where it matches the reference best; return it with notes about how."""
    fields = [_multiply_neighbours(one) for one in (reference, image)]
    shape = [n + k - 1 for n, k in zip(reference.object.shape, image.object.shape, strict=True)]
    size = [scipy.fft.next_fast_len(n) for n in shape]
    match = np.zeros(size)
    for a, b in zip(*fields, strict=True):
        spectrum = scipy.fft.fft2(a, size) * scipy.fft.fft2(b, size).conj()
        # Squared moduli of the sums of each axis: a phase plane between the images multiplies each sum by its own phase
        # factor.
        match += np.abs(scipy.fft.ifft2(spectrum)) ** 2
    # match[d] is the match with image pixel [0, 0] at reference pixel d.
    stated = np.array(image.origin_px) - np.array(reference.origin_px)
    peak = np.unravel_index(int(match.argmax()), match.shape)
    best = np.array([p if p < n else p - k for p, n, k in zip(peak, reference.object.shape, size, strict=True)])
    highest = float(match[peak])
    match[np.ix_(*((np.arange(p - _PEAK_PX, p + _PEAK_PX + 1)) % k for p, k in zip(peak, size, strict=True)))] = 0
    if np.abs(best - stated).max() <= MAX_SHIFT_PX or highest < _MIN_PEAK_RATIO * match.max():
        return image, ""
    y, x = (int(d) for d in best - stated)
    origin = (image.origin_px[0] + y, image.origin_px[1] + x)
    return dataclasses.replace(image, origin_px=origin), f"moved by {y}, {x} px (y, x), where it matches."


def _multiply_neighbours(image: Reconstruction) -> list[np.ndarray]:
    """Multiply neighbours along each axis, less their mean: no global phase and no phase ramp changes the modulus of
    these products or how they match."""
    mask = image.valid & np.isfinite(image.object)
    values = np.where(mask, image.object, 0).astype(np.complex128)
    size = np.abs(values)
    usual = float(np.median(size[mask])) if mask.any() else 1.0
    # Diverged pixels outside the scanned area, if they are marked valid, must not dominate.
    values *= np.minimum(1, _MAX_RELATIVE_AMPLITUDE * usual / np.maximum(size, 1e-30)) / max(usual, 1e-30)
    out = []
    for axis in (0, 1):
        moved, known = np.roll(values, -1, axis), mask & np.roll(mask, -1, axis)
        # The last pixel has no neighbour: `roll` is periodic.
        np.moveaxis(known, axis, 0)[-1] = False
        product = values * moved.conj()
        out.append(np.where(known, product - (product[known].mean() if known.any() else 0), 0))
    return out


def _crop_to_common(
    pairs: dict[str, AlignedPair], reference: str
) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[int, int]]:
    """Crop the images of all pairs, and their reference, to the box that all pixels share."""
    low = [max(pair.origin_px[i] for pair in pairs.values()) for i in range(2)]
    high = [min(pair.origin_px[i] + pair.mask.shape[i] for pair in pairs.values()) for i in range(2)]

    def cut(array: np.ndarray, pair: AlignedPair) -> np.ndarray:
        rows, columns = (slice(low[i] - pair.origin_px[i], high[i] - pair.origin_px[i]) for i in range(2))
        return array[rows, columns]

    if low[0] >= high[0] or low[1] >= high[1]:
        raise EvaluationError("the two reconstructions lie on different parts of the truth.")
    mask = np.logical_and.reduce([cut(pair.mask, pair) for pair in pairs.values()])
    if not mask.any():
        raise EvaluationError("no pixel is covered by both reconstructions.")
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    shown = {name: cut(pair.object, pair)[box] for name, pair in pairs.items()}
    any_pair = next(iter(pairs.values()))
    shown[reference] = cut(any_pair.truth, any_pair)[box]
    return shown, mask[box], (low[0] + box[0].start, low[1] + box[1].start)
