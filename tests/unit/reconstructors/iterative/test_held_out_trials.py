"""The part of a scan on which priors are tried: which frames, which photons, and what is expected of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.physics.patches import extract
from torchptycho.reconstructors.iterative import held_out
from torchptycho.reconstructors.iterative.held_out import _KEPT_FRACTION, _Trials
from torchptycho.reconstructors.iterative.problem import open_problem
from torchptycho.reconstructors.iterative.state import RefinementState

CONFIG = RefineConfig(refine_seed=5)
N_FRAMES = 40


@pytest.fixture(scope="module")
def scan() -> Scan:
    made = simulate(SimulateConfig(n_px=16, object_px=60, n_frames=60, photons_per_frame=1e4, probe_defocus_waves=1))
    # Far from the origin, where a distance from the origin and one from the middle are not the same.
    return dataclasses.replace(made, positions_px=made.positions_px + np.array([300.0, -200.0]), truth=None)


@pytest.mark.contract("refine.regularise.auto")
@pytest.mark.parametrize("whole", [True, False])
def test_a_compact_part_is_held_out_by_photons_or_by_frames(scan: Scan, whole: bool) -> None:
    frames = scan.frames[:].astype(np.float32)
    given = dataclasses.replace(scan, frames=ArrayFrames(frames if whole else frames * 0.7))
    with open_problem(given, margin_px=2) as problem:
        object = torch.ones(problem.shape, dtype=torch.complex64)
        probe = torch.from_numpy(scan.probe)
        positions_px = torch.from_numpy(scan.positions_px)
        state = RefinementState.begin(object, probe, positions_px)
        trials = _Trials(problem, state, CONFIG, N_FRAMES)
        assert trials.held_out == ("photons" if whole else "frames")
        distance = (positions_px - positions_px.median(0).values).norm(dim=1)
        nearest = sorted(distance.argsort()[:N_FRAMES].tolist())
        kept, held = (part.load_counts(torch.arange(part.n_frames)).double() for part in (trials._kept, trials._held))
        counts = problem.load_counts(torch.tensor(nearest)).double()
        if whole:
            assert trials._kept_rows.tolist() == trials._held_rows.tolist() == nearest
            torch.testing.assert_close(kept + held, counts)
            # What is expected of the held photons follows from the light of the kept ones.
            assert float(held.sum() / kept.sum()) == pytest.approx(trials._model_factor, rel=0.02)
            assert float(kept.sum() / counts.sum()) == pytest.approx(_KEPT_FRACTION, rel=0.02)
            assert trials._part == _KEPT_FRACTION
        else:
            rows = trials._kept_rows.tolist(), trials._held_rows.tolist()
            assert sorted(rows[0] + rows[1]) == nearest
            assert len(rows[1]) == round(N_FRAMES * (1 - _KEPT_FRACTION))
            # Those that are held out lie at all distances from the middle.
            ranks = [sorted(nearest, key=lambda row: float(distance[row])).index(row) for row in rows[1]]
            assert max(np.diff(sorted(ranks))) <= round(1 / (1 - _KEPT_FRACTION))
            torch.testing.assert_close(held, problem.load_counts(torch.tensor(rows[1])).double())
            assert (trials._part, trials._model_factor) == (1.0, 1.0)
        assert trials.n_held_counts == pytest.approx(float(held.sum()), rel=1e-6)
        # The small canvases lie where the large one does.
        for part, places in ((trials._kept, trials._kept_px), (trials._held, trials._held_px)):
            corners = part.compute_corners_px(places)
            assert float(corners.min()) >= 0
            assert bool((corners + 16 <= torch.tensor(part.shape)).all())
            ramp = torch.arange(part.shape[0], dtype=torch.float64)[:, None] + part.origin_px[0]
            patches = extract(ramp.expand(part.shape).contiguous(), corners, 16)
            torch.testing.assert_close(patches[:, 8, 8], places[:, 0])


@pytest.mark.contract("refine.regularise.auto")
@pytest.mark.parametrize(
    ("likelihoods", "n_tried"),
    [((0, 1, 2, 3, 4, 5), 5), ((0, 3, 2, 1, 0, 0), 3), ((5, 4, 3, 2, 1, 0), 3), ((0, 1, 2, 1, 0, 9), 4),
     ((0, 1, 3, 2, 3, 2), 5), ((0, 4, 4, 3, 2, 9), 4), ((2, 1, 0, 0, 0, 0), 5)],
)  # fmt: skip
def test_strengths_are_tried_until_held_out_counts_fall_twice(
    scan: Scan, monkeypatch: pytest.MonkeyPatch, likelihoods: tuple[int, ...], n_tried: int
) -> None:
    """With scripted likelihoods: what is run, and from which image."""
    runs: list[tuple[int, int, float, float | None]] = []
    judged: list[RefinementState] = []

    def run_epochs(
        self: _Trials, state: RefinementState, epochs: int, growth: Callable[[float], float], follow: Any = None
    ) -> None:
        state.epoch += epochs
        strength = None
        if follow is not None:
            follow(state)
            strength = float(state.object.real.mean())
        runs.append((epochs, state.epoch, growth(0.25), strength))

    def judge(self: _Trials, state: RefinementState) -> torch.Tensor:
        judged.append(state)
        return torch.tensor([likelihoods[len(judged) - 1] / 2] * 2, dtype=torch.float64)

    class Strength:
        def denoise(self, object: torch.Tensor, photons_per_px: torch.Tensor, strength: float) -> torch.Tensor:
            assert photons_per_px.dtype == object.real.dtype
            return torch.full_like(object, strength)

    monkeypatch.setattr(_Trials, "_run_epochs", run_epochs)
    monkeypatch.setattr(_Trials, "_judge", judge)
    with open_problem(scan, margin_px=2) as problem:
        object = torch.ones(problem.shape, dtype=torch.complex64)
        state = RefinementState.begin(object, torch.from_numpy(scan.probe), torch.from_numpy(scan.positions_px))
        found, learned = _Trials(problem, state, CONFIG, N_FRAMES).run(Strength(), None)  # type: ignore[arg-type]
    assert [float(values.sum()) for values in found] == list(likelihoods[: n_tried + 1])
    assert learned is None
    # From a uniform object; then polished without a prior and with the least strength, each from that image; then with
    # the next strength from the image of the one before, which has gathered all frames.
    base, polishing = held_out._BASE_EPOCHS, held_out._POLISHING_EPOCHS
    grown = held_out._grow(0.25)
    assert grown != held_out._take_all(0.25) == 1.0
    assert runs[:3] == [
        (base, base, 0.0, None),
        (polishing, base + polishing, grown, None),
        (polishing, base + polishing, grown, pytest.approx(held_out._STRENGTHS[0])),
    ]
    assert runs[3:] == [
        (polishing, base + (2 + number) * polishing, 1.0, pytest.approx(strength))
        for number, strength in enumerate(held_out._STRENGTHS[1:n_tried])
    ]
    assert judged[0] is not judged[1]
    assert all(later is judged[1] for later in judged[1:])
