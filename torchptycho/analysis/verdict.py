"""Is an image to be trusted? One word, and the reasons for it, from figures that its refinement has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from torchptycho.analysis.inspection import MIN_PHOTONS_PER_PX, ScanSummary
from torchptycho.core.reconstruction import Reconstruction

__all__ = ["Verdict", "judge_image"]

# Parts of the variation between frames that a fit leaves: position errors of 0.5 px RMS leave 0.06, a scan that was
# read wrongly 0.2 and more (benchmarks/hopeless_fits.py).
_BAD_UNEXPLAINED, _DOUBTFUL_UNEXPLAINED = 0.2, 0.05
# Part of the misfit that is gained in the last epochs, a tenth of them and at least five, where a fit has not ended.
_STILL_FALLING, _LAST_PART, _MIN_LAST_EPOCHS = 0.02, 0.1, 5
# Part of the frames at the limit of their corrections.
_MOST_AT_LIMIT = 0.01
_MIN_OVERLAP = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to think of an image.

    Arguments:
        word: good, doubtful, bad, or unknown where nothing was fitted to the counts.
        reasons: one sentence each, the gravest first.
    """

    word: Literal["good", "doubtful", "bad", "unknown"]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.word.capitalize()}. {' '.join(self.reasons)}"


def judge_image(image: Reconstruction, summary: ScanSummary) -> Verdict:
    """Judge an image by its fit to the counts, its positions, and its scan.

    Arguments:
        summary: of its scan.
    """
    unexplained = image.history.get("unexplained")
    if not unexplained:
        return Verdict(
            word="unknown",
            reasons=("The image was not fitted to the counts: `refine --start` fits it, and judges the fit.",),
        )
    bad, doubtful = tuple(_find_bad(image, summary)), tuple(_find_doubtful(image, summary))
    if bad:
        return Verdict(word="bad", reasons=bad + doubtful)
    if doubtful:
        return Verdict(word="doubtful", reasons=doubtful)
    misfit = image.history["misfit"][-1]
    return Verdict(
        word="good",
        reasons=(
            f"The image explains {1 - unexplained[-1]:.1%} of the variation between frames beyond photon noise (misfit "
            f"{misfit:.3g}), and nothing else speaks against it.",
        ),
    )


def _find_bad(image: Reconstruction, summary: ScanSummary) -> Iterator[str]:
    refined = image.provenance.get("refinement", image.provenance)
    left = image.history["unexplained"][-1]
    if left > _BAD_UNEXPLAINED:
        yield (
            f"The fit leaves {left:.0%} of the variation between frames unexplained: the scan is not what it is taken "
            "for. `diagnose` searches for the cause."
        )
    # Its first fault says the same with more words.
    faults = [fault for fault in refined.get("warnings", ()) if "of the variation between frames" not in fault]
    yield from (_shorten(fault) for fault in faults)
    if not summary.usable:
        yield summary.problems[0]


def _find_doubtful(image: Reconstruction, summary: ScanSummary) -> Iterator[str]:
    refined = image.provenance.get("refinement", image.provenance)
    left = image.history["unexplained"][-1]
    if _DOUBTFUL_UNEXPLAINED < left <= _BAD_UNEXPLAINED:
        yield (
            f"The fit leaves {left:.0%} of the variation between frames unexplained, as position errors of half a "
            "pixel or a background do. `diagnose` searches for the cause."
        )
    if refined.get("complete") is False:
        yield "The refinement was interrupted."
    misfit = image.history["misfit"]
    last = max(_MIN_LAST_EPOCHS, round(_LAST_PART * len(misfit)))
    if len(misfit) > last and misfit[-1] < (1 - _STILL_FALLING) * misfit[-1 - last] and misfit[-1] > 1:
        yield (
            f"The misfit still falls, by {1 - misfit[-1] / misfit[-1 - last]:.0%} in the last {last} epochs: more "
            "epochs improve the image."
        )
    yield from _find_positions_at_limit(image, refined.get("refine", {}))
    if 0 < summary.overlap < _MIN_OVERLAP:
        yield f"Neighbouring frames overlap by {summary.overlap:.0%} only."
    per_px = summary.photons_per_px
    if per_px is not None and per_px < MIN_PHOTONS_PER_PX:
        yield f"{per_px:.2g} photons pass an object pixel: noise may hide what is wrong."


def _find_positions_at_limit(image: Reconstruction, options: dict[str, object]) -> Iterator[str]:
    limit = options.get("position_limit_px")
    if image.positions_px is None or image.given_positions_px is None or not isinstance(limit, int | float):
        return
    if options.get("position_update", "none") == "none" or image.positions_px.shape != image.given_positions_px.shape:
        return
    moved = np.abs(image.positions_px - image.given_positions_px).max(axis=1)
    part = float((moved > 0.99 * limit).mean())
    if part > _MOST_AT_LIMIT:
        yield f"{part:.0%} of the positions moved as far as they may ({limit:g} px): raise `--position-limit-px`."


def _shorten(fault: str) -> str:
    """Return the first sentence of a warning, without its source."""
    sentence = fault.partition(": ")[2].partition(". ")[0].rstrip(".")
    return f"{sentence[:1].upper()}{sentence[1:]}."
