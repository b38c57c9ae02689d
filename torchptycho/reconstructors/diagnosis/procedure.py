"""What is probably wrong with a scan, in the order of what its correction gains, and the options that correct it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from torchptycho.analysis.inspection import ScanSummary, inspect_scan
from torchptycho.core.errors import ConfigError
from torchptycho.core.scan import Scan
from torchptycho.data.held_out import HeldOut
from torchptycho.io.guesses import compute_mean_pattern
from torchptycho.io.inputs import as_scan
from torchptycho.io.near_field import state_propagation
from torchptycho.reconstructors.diagnosis.findings import Diagnosis, Evidence, Finding
from torchptycho.reconstructors.diagnosis.likelihood import compare, judge
from torchptycho.reconstructors.diagnosis.neighbourhood import (
    ASSUMED_PHOTONS,
    choose_frame_count,
    divide_counts,
    load_counts,
    load_neighbourhood,
)
from torchptycho.reconstructors.diagnosis.pixel_checks import PIXEL_CHECKS
from torchptycho.reconstructors.diagnosis.scan_checks import (
    ADVICE_CHECKS,
    ScanView,
    check_domain,
    check_order,
    check_scans,
    check_wrap,
)
from torchptycho.reconstructors.diagnosis.search import RemedySearch
from torchptycho.reconstructors.diagnosis.wording import describe_attempt

__all__ = ["diagnose"]

# A fit of the held-out counts as near to photon noise as this, without a part of the variation left, is right.
_GOOD_MISFIT, _GOOD_UNEXPLAINED = 1.03, 0.005
# Standard errors over fewer frames are themselves uncertain by a fifth and more.
_FEW_FRAMES = 15
# Above this part of the variation something is wrong that no remedy here corrects.
_BAD_UNEXPLAINED = 0.05

OnProgress = Callable[[str], None]


def diagnose(
    scan: Scan | str | Path,
    *,
    frames: int | None = None,
    seed: int = 0,
    rounds: int = 3,
    on_progress: OnProgress | None = None,
) -> Diagnosis:
    """Diagnose a scan: what is probably wrong, how much its correction gains, and which options correct it.

    First the frames and positions are judged as they are. Then a compact neighbourhood is refined on 85 % of its
    photons, briefly, as it is and with each of some 40 remedies; the other photons judge. The remedy that makes them
    likeliest is taken over, and the others are tried again. No truth is needed.

    Arguments:
        frames: number of frames of the neighbourhood; None takes 100 of 64 x 64 px, fewer of larger ones.
        seed: of its place, and of the photons that are held out.
        rounds: largest number of remedies that are looked for one after the other.
        on_progress: called with what comes next.

    Raises:
        ConfigError: fewer than two frames, or a negative seed, are asked for.
        ScanError: the frames are unusable.
        KeyboardInterrupt: it was interrupted.
    """
    if frames is not None and frames < 2:
        raise ConfigError(f"neighbours: expected 2 frames or more; found {frames}. Leave it out for about 100.")
    if seed < 0:
        raise ConfigError(f"seed: expected 0 or more; found {seed}.")
    return _Diagnosis(as_scan(scan), frames, seed, rounds, on_progress or (lambda what: None)).run()


class _Diagnosis:
    """One run of `diagnose`."""

    def __init__(self, scan: Scan, frames: int | None, seed: int, rounds: int, on_progress: OnProgress) -> None:
        self._rounds = rounds
        self._scan, self._seed, self._on_progress = scan, seed, on_progress
        self._frames = frames or choose_frame_count(scan.n_px)
        self._begun = time.perf_counter()
        self._fatal: list[Finding] = []
        self._findings: list[Finding] = []
        self._advice: list[Finding] = []
        self._notes: list[str] = []
        self._search: RemedySearch | None = None
        self._first: tuple[float, float] | None = None

    def run(self) -> Diagnosis:
        self._on_progress("reading all frames once")
        source, n_frames = self._scan.source, self._scan.n_frames
        self._take_domain()
        checked = check_scans(self._scan, load_counts)
        if checked is not None:
            self._fatal.append(checked.finding)
            self._scan = checked.fix(self._scan) if checked.fix else self._scan
        summary = inspect_scan(self._scan)
        if summary.near_field is not None:
            self._fatal.append(_describe_near_field(summary, self._scan))
            return self._finish(source, n_frames, 0)
        self._scan = state_propagation(self._scan)
        # Frames that are named in a finding of their own must not decide about everything else.
        part, assumed = load_neighbourhood(self._scan, self._frames, self._seed)
        if part.n_frames < _FEW_FRAMES:
            self._notes.append(f"only {part.n_frames} frames: their spread, and so each gain's error, is uncertain")
        if assumed:
            self._notes.append(
                f"the frames show no photons and state no dose: {ASSUMED_PHOTONS:g} per frame are assumed, so that "
                "small faults are not seen"
            )
        pattern = compute_mean_pattern(self._scan.frames, self._scan.domain)
        order = check_order(self._scan, pattern)
        if order is not None and order.fix is not None:
            self._fatal.append(order.finding)
            part, pattern = order.fix(part), np.fft.fftshift(pattern)
        parts = self._check_pixels(ScanView(scan=self._scan, part=part, pattern=pattern, summary=summary))
        self._try_remedies(parts)
        return self._finish(source, n_frames, part.n_frames)

    def _take_domain(self) -> None:
        checked = check_domain(self._scan)
        if checked is not None and checked.fix is not None:
            self._fatal.append(checked.finding)
            self._scan = checked.fix(self._scan)

    def _check_pixels(self, view: ScanView) -> HeldOut:
        """Run the checks; return the neighbourhood with their remedies, and measure what they gain."""
        parts = divide_counts(view.part, self._seed)
        for check in PIXEL_CHECKS:
            checked = check(view)
            if checked is None or checked.fix is None:
                continue
            view = dataclasses.replace(view, part=checked.fix(view.part))
            after = dataclasses.replace(parts, kept=checked.fix(parts.kept), held=checked.fix(parts.held))
            self._findings.append(self._measure_change(checked.finding, parts, after))
            parts = after
        for check in ADVICE_CHECKS:
            advice = check(view)
            if advice is not None:
                self._advice.append(advice.finding)
        return parts

    def _measure_change(self, finding: Finding, before: HeldOut, after: HeldOut) -> Finding:
        """Measure what a change of the frames gains, on the pixels that are good before and after."""
        self._on_progress(finding.fault)
        # A change of the centre moves counts and mask together.
        mask = before.kept.mask & after.kept.mask if finding.fault != "centre" else None
        bases = [RemedySearch(parts).base for parts in (before, after)]
        worse, better = (
            judge(base.image, parts.held, parts.model_factor, mask)
            for base, parts in zip(bases, (before, after), strict=True)
        )
        if self._first is None:
            self._first = (worse.misfit, bases[0].unexplained)
        gain = compare(better, worse)
        return dataclasses.replace(finding, gain=gain.per_count, error=gain.error, share=gain.share)

    def _try_remedies(self, parts: HeldOut) -> None:
        self._search = RemedySearch(parts, on_trial=self._on_progress)
        if self._first is None:
            self._first = (self._search.base.judgement.misfit, self._search.base.unexplained)
        for _ in range(self._rounds):
            given = self._search.parts.kept
            best, tried = self._search.find_best()
            if best is None:
                break
            finding = describe_attempt(best, given, self._scan, tried)
            if finding is not None:
                self._findings.append(finding)
            self._search.take_over(best)
            base = self._search.base
            if base.judgement.misfit < _GOOD_MISFIT and base.unexplained < _GOOD_UNEXPLAINED:
                break
        probe = self._search.base.image.probe
        wrapped = None if probe is None else check_wrap(probe, self._scan.reading)
        if wrapped is not None:
            self._advice.insert(0, wrapped.finding)
        if self._search.base.unexplained > _BAD_UNEXPLAINED:
            self._findings.append(_describe_rest(self._search))

    def _finish(self, source: str, n_frames: int, frames: int) -> Diagnosis:
        found = sorted(self._findings, key=lambda one: -(one.share or 0.0))
        misfit, unexplained = self._first or (None, None)
        return Diagnosis(
            source=source,
            n_frames=n_frames,
            frames=frames,
            findings=tuple(self._fatal + found + self._advice),
            misfit=misfit,
            unexplained=unexplained,
            corrected_misfit=None if self._search is None else self._search.base.judgement.misfit,
            trials=() if self._search is None else tuple(self._search.results),
            seconds=round(time.perf_counter() - self._begun, 3),
            notes=tuple(self._notes),
        )


def _describe_near_field(summary: ScanSummary, scan: Scan) -> Finding:
    pattern = compute_mean_pattern(scan.frames, scan.domain)
    return Finding(
        fault="near field",
        sentence=f"These are near-field images, which no far-field model explains: {summary.near_field}.",
        option="--propagation near",
        is_fatal=True,
        evidence=Evidence(kind="image", title="mean image", values=pattern),
    )


def _describe_rest(search: RemedySearch) -> Finding:
    left = search.base.unexplained
    tried = sorted({one.remedy: one.share for one in sorted(search.results, key=lambda one: one.share)}.items())
    bars = Evidence(
        kind="bars",
        title="what each remedy gains",
        values=np.array([share for _, share in tried]),
        labels=tuple(name for name, _ in tried),
        y_label="share",
    )
    return Finding(
        fault="unexplained",
        sentence=f"{left:.0%} of the variation between frames stays unexplained with every remedy that was tried: a "
        "sample too thick for a projection (try `refine --n-slices`), positions of another scan, a probe far from the "
        "true one, or several faults at once.",
        evidence=bars,
    )
