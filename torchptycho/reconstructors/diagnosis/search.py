"""Which remedy makes held-out counts likelier: many tried briefly on few frames, the best of them longer on more."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from torchptycho.core.config import RefineConfig
from torchptycho.core.errors import ScanError, TorchptychoError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.held_out import HeldOut
from torchptycho.reconstructors.diagnosis.findings import TrialResult
from torchptycho.reconstructors.diagnosis.likelihood import Gain, Judgement, compare, judge
from torchptycho.reconstructors.diagnosis.remedies import (
    FAMILIES,
    Remedy,
    list_coarse_remedies,
    list_model_remedies,
    list_neighbours,
    make_map_remedy,
    make_search_remedy,
)
from torchptycho.reconstructors.iterative import refine

__all__ = ["MIN_SHARE", "MIN_SIGMA", "Attempt", "RemedySearch"]

_log = logging.getLogger(__name__)

MIN_SIGMA, MIN_SHARE = 3.0, 0.015
"""Standard errors above which, and part of what the image explains above which, a gain is reported; chosen on simulated
scans with and without faults, other ones than those of benchmarks/results/diagnose.csv."""

# The refinement finds a defocus by itself, only later: what it gains after few epochs is no fault, unless it is much.
_MIN_SHARE_OF_DEFOCUS = 0.05

# Frames and epochs of a trial: of all coarse remedies, of the best of them, of the best of each family and what the
# model may lack, and of the best of all.
_ROUGH, _COARSE, _MIDDLE, _FINE = (20, 6), (30, 12), (40, 14), (10_000, 30)
# Coarse remedies of a kind that go on.
_MOST_COARSE = 2
_MIN_COARSE_SIGMA, _MOST_FINE = 2.0, 3
# A remedy of fewer free numbers is named in place of one that gains more, if it gains this part of it.
_AS_GOOD = 0.88
# Frames that a search for positions reaches, and the part of the variation that is left where it is tried.
_SEARCH_PX, _LOST_UNEXPLAINED = 24.0, 0.1
# A fit that leaves less of the variation between frames, with held-out photons per frame enough to see it, is near.
_NEAR_UNEXPLAINED, _NEAR_MISFIT, _DIM = 0.02, 1.1, 500.0

OnTrial = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Attempt:
    """A refinement with a remedy, and what the held-out counts say of it.

    Arguments:
        gain: over the refinement of the same frames without it; None for that one itself.
    """

    remedy: Remedy
    image: Reconstruction
    judgement: Judgement
    gain: Gain | None = None

    @property
    def unexplained(self) -> float:
        return float(self.image.history["unexplained"][-1])


class RemedySearch:
    """Tries remedies on one neighbourhood of a scan.

    Arguments:
        parts: its counts, held out and kept.
        options: of every refinement.
        on_trial: called with the name of each trial before it begins.
    """

    def __init__(
        self, parts: HeldOut, *, options: dict[str, Any] | None = None, on_trial: OnTrial | None = None
    ) -> None:
        self._parts, self._options = parts, dict(options or {})
        self._on_trial = on_trial or (lambda name: None)
        self.results: list[TrialResult] = []
        self.round = 1
        self._base: Attempt | None = None
        self._last_error: Exception | None = None

    @property
    def parts(self) -> HeldOut:
        """The counts, with the remedies that were taken over."""
        return self._parts

    @property
    def base(self) -> Attempt:
        """The refinement of all frames as they are now."""
        if self._base is None:
            self._base = self._try(Remedy(family="none", value="as it is"), *_FINE, None)
        if self._base is None:
            raise ScanError(
                self._parts.kept.source,
                None,
                expected="frames that can be refined as they are",
                found=f"a refinement that fails: {self._last_error}",
                remedy="Correct that first; `torchptycho inspect` describes the file.",
            ) from self._last_error
        return self._base

    def find_best(self) -> tuple[Attempt | None, list[Attempt]]:
        """Find the remedy that gains most, None where none gains enough; with all attempts of the coarse search."""
        tried = self._try_coarsely()
        candidates = self._choose_candidates(tried)
        base = self.base
        finalists = [one for one in (self._try(remedy, *_FINE, base.judgement) for remedy in candidates) if one]
        if not finalists or min(one.unexplained for one in (*finalists, base)) > _LOST_UNEXPLAINED:
            lost = self._try(make_search_remedy(_SEARCH_PX), *_FINE, base.judgement) if self._may_be_lost() else None
            finalists += [lost] if lost else []
        return choose_best(finalists), tried

    def take_over(self, attempt: Attempt) -> None:
        """Go on from a scan with this remedy."""
        kept = attempt.remedy.change(self._parts.kept)
        if attempt.remedy.family in ("map", "positions", "search") and attempt.image.positions_px is not None:
            kept = dataclasses.replace(kept, positions_px=attempt.image.positions_px)
        if attempt.remedy.family == "defocus" and attempt.image.probe is not None:
            kept = dataclasses.replace(kept, probe=attempt.image.probe)
        self._parts = dataclasses.replace(self._parts, kept=kept)
        moved = attempt.remedy.family in ("map", "search")
        self._options |= {} if moved else attempt.remedy.options
        self.round += 1
        self._base = Attempt(
            remedy=Remedy(family="none", value="as corrected"), image=attempt.image, judgement=attempt.judgement
        )

    def _may_be_far_off(self) -> bool:
        """Return whether a wrong orientation, or as much, could have left a fit like that: it leaves a part of the
        variation between frames, unless there are too few photons to see it."""
        photons = self.base.judgement.counts / max(self._parts.held.n_frames, 1)
        return self.base.unexplained > _NEAR_UNEXPLAINED or self.base.judgement.misfit > _NEAR_MISFIT or photons < _DIM

    def _may_be_lost(self) -> bool:
        return self.base.unexplained > _LOST_UNEXPLAINED and self._options.get("position_update") is None

    def _try_coarsely(self) -> list[Attempt]:
        base = self._try(Remedy(family="none", value="as it is"), *_COARSE, None)
        if base is None:
            return []
        if self._may_be_far_off():
            remedies = self._choose_roughly(list_coarse_remedies())
        else:
            remedies = list_coarse_remedies(near=True)
        tried = [self._try(remedy, *_COARSE, base.judgement) for remedy in remedies]
        for family in ("map", "defocus"):
            best = _find_highest([one for one in tried if one and one.remedy.family == family])
            if best is not None and _is_better(best):
                tried += [self._try(remedy, *_COARSE, base.judgement) for remedy in list_neighbours(best.remedy)]
        return [base, *(one for one in tried if one)]

    def _choose_roughly(self, remedies: Sequence[Remedy]) -> list[Remedy]:
        """Choose the best of each kind after very few epochs."""
        base = self._try(Remedy(family="none", value="as it is"), *_ROUGH, None)
        if base is None:
            return list(remedies)
        kinds: dict[str, list[Attempt]] = {}
        for remedy in remedies:
            attempt = self._try(remedy, *_ROUGH, base.judgement)
            if attempt is not None:
                kinds.setdefault(remedy.kind, []).append(attempt)
        best = [_sort_by_gain(attempts)[:_MOST_COARSE] for attempts in kinds.values()]
        return [one.remedy for attempts in best for one in attempts]

    def _choose_candidates(self, tried: Sequence[Attempt]) -> list[Remedy]:
        """Choose what is tried on all frames: of each family the best, compared on some more frames."""
        remedies = list_model_remedies(self._options.get("n_modes") or len(self._parts.kept.probe))
        remedies = [one for one in remedies if not one.options.items() <= self._options.items()]
        start = make_map_remedy(np.eye(2), "as it is")
        for family in ("orientation", "map", "defocus"):
            best = _find_highest([one for one in tried if one.remedy.family == family])
            if best is not None and _is_better(best):
                if family == "map":
                    start = best.remedy
                else:
                    remedies.append(best.remedy)
        if self._options.get("position_update") is None:
            affine = {"position_update": "affine", "position_start_epoch": 3}
            remedies.append(dataclasses.replace(start, value=f"{start.value}, then affine", options=affine))
        base = self._try(Remedy(family="none", value="as it is"), *_MIDDLE, None)
        if base is None:
            return []
        compared = [self._try(remedy, *_MIDDLE, base.judgement) for remedy in remedies]
        better = [one for one in compared if one and _is_better(one)]
        return [one.remedy for one in _sort_by_gain(better)[:_MOST_FINE]]

    def _try(self, remedy: Remedy, frames: int, epochs: int, base: Judgement | None) -> Attempt | None:
        """Refine the innermost frames with a remedy; None where that is impossible or diverges."""
        parts = _select_innermost(self._parts, frames)
        self._on_trial(f"{remedy.family}: {remedy.value}" if remedy.family != "none" else remedy.value)
        config = RefineConfig(epochs=epochs, patience=None, regularization="none", **(self._options | remedy.options))
        try:
            image = refine(remedy.change(parts.kept), config=config, device="cpu", judge=False)
        except (TorchptychoError, FloatingPointError) as error:
            _log.info("%s: %s: %s", parts.kept.source, remedy.value, error)
            self._last_error = error
            return None
        # An interrupted refinement returns the image so far, which says nothing about the remedy.
        if not image.provenance["complete"]:
            raise KeyboardInterrupt
        judgement = judge(image, parts.held, parts.model_factor)
        gain = None if base is None else compare(judgement, base)
        if gain is not None:
            self.results.append(
                TrialResult(
                    remedy=remedy.family,
                    value=remedy.value,
                    round=self.round,
                    frames=parts.kept.n_frames,
                    epochs=epochs,
                    gain=gain.per_count,
                    error=gain.error,
                    share=gain.share,
                    misfit=judgement.misfit,
                )
            )
        return Attempt(remedy=remedy, image=image, judgement=judgement, gain=gain)


def choose_best(attempts: Sequence[Attempt]) -> Attempt | None:
    """Choose the attempt that gains most, or one of fewer free numbers that gains about as much; None where none gains
    enough."""
    good = [one for one in attempts if one.gain and one.gain.is_significant(MIN_SIGMA, _get_min_share(one))]
    if not good:
        return None
    most = max(one.gain.per_count for one in good if one.gain)
    as_good = [one for one in good if one.gain and one.gain.per_count >= _AS_GOOD * most]
    return min(as_good, key=lambda one: FAMILIES.index(one.remedy.family))


def _get_min_share(attempt: Attempt) -> float:
    return _MIN_SHARE_OF_DEFOCUS if attempt.remedy.family == "defocus" else MIN_SHARE


def _is_better(attempt: Attempt) -> bool:
    return attempt.gain is not None and attempt.gain.is_significant(_MIN_COARSE_SIGMA, MIN_SHARE / 2)


def _sort_by_gain(attempts: Sequence[Attempt]) -> list[Attempt]:
    return sorted(attempts, key=lambda one: -one.gain.per_count if one.gain else np.inf)


def _find_highest(attempts: Sequence[Attempt]) -> Attempt | None:
    return next(iter(_sort_by_gain(attempts)), None)


def _select_innermost(parts: HeldOut, most: int) -> HeldOut:
    """Select the frames nearest to the middle of the field."""
    places = parts.held.positions_px
    if len(places) <= most:
        return parts
    distance = np.hypot(*(places - np.median(places, axis=0)).T)
    rows = np.sort(np.argsort(distance, kind="stable")[:most])
    return dataclasses.replace(parts, kept=_pick(parts.kept, rows), held=_pick(parts.held, rows))


def _pick(scan: Scan, rows: Int64[np.ndarray, " k"]) -> Scan:
    return dataclasses.replace(
        scan,
        frames=ArrayFrames(scan.frames[rows]),
        positions_px=np.ascontiguousarray(scan.positions_px[rows]),
        scan_id=scan.scan_id[rows],
    )
