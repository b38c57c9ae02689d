"""Updates of an object: only the pixels of their frames are touched, and the same as if all were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategies import normal
from tolerances import assert_close

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.simulation import simulate
from torchptycho.physics.patches import extract_inside, place
from torchptycho.reconstructors.iterative import canvas_update, refine
from torchptycho.reconstructors.iterative.canvas_update import AccumulatedUpdate, add_momentum_in_place
from torchptycho.reconstructors.iterative.initial_state import initialize_state
from torchptycho.reconstructors.iterative.problem import open_problem
from torchptycho.reconstructors.iterative.rpie import run_epoch
from torchptycho.reconstructors.iterative.state import RefinementState

N_PX, SHAPE, ALPHA = 8, (90, 100), 0.1
CORNERS_PX = torch.tensor([[10.3, 20.8], [14.0, 22.5], [60.2, 70.9]], dtype=torch.float64)


def make_state() -> RefinementState:
    probe = normal((2, N_PX, N_PX), 1)
    return RefinementState.begin(normal(SHAPE, 2), probe, CORNERS_PX.clone())


def accumulate(state: RefinementState) -> tuple[AccumulatedUpdate, torch.Tensor]:
    gathered = AccumulatedUpdate(state, ALPHA)
    change = normal((3, 2, N_PX, N_PX), 3)
    for part in (slice(0, 2), slice(2, 3)):
        patches = extract_inside(state.object, CORNERS_PX[part], N_PX)
        gathered.add(patches[None], [state.probe], CORNERS_PX[part], [change[part]], update_probe=True)
    return gathered, change


@pytest.mark.contract("refine.canvas.touched")
@pytest.mark.parametrize("fraction", [0.0, 1.0], ids=["whole canvas", "patches"])
def test_an_update_is_the_backprojection_over_the_illumination(
    monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    monkeypatch.setattr(canvas_update, "_WHOLE_CANVAS_FRACTION", fraction)
    state = make_state()
    before = state.object.clone()
    gathered, change = accumulate(state)
    power = state.probe.abs().square().sum(0).expand(3, -1, -1)
    illumination = place(power, CORNERS_PX, SHAPE)
    backprojection = place((change * state.probe.conj()).sum(1), CORNERS_PX, SHAPE)
    expected = backprojection / ((1 - ALPHA) * illumination + ALPHA * illumination.max())
    assert_close(gathered.compute_object_change()[0], expected, "double")
    gathered.apply_to(state.slices, 0.7)
    assert_close(state.object, before + 0.7 * expected, "double")
    gathered.clear()
    assert gathered.frames == 0
    gathered, _ = accumulate(make_state())
    gathered.clear()
    patches = extract_inside(before, CORNERS_PX[:1], N_PX)
    gathered.add(patches[None], [state.probe], CORNERS_PX[:1], [change[:1]], update_probe=True)
    alone = place((change[:1] * state.probe.conj()).sum(1), CORNERS_PX[:1], SHAPE)
    light = place(power[:1], CORNERS_PX[:1], SHAPE)
    assert_close(gathered.compute_object_change()[0], alone / ((1 - ALPHA) * light + ALPHA * light.max()), "double")


@pytest.mark.contract("refine.canvas.touched")
def test_an_update_writes_nothing_outside_its_frames() -> None:
    state = make_state()
    gathered, _ = accumulate(state)
    outside = torch.ones(SHAPE, dtype=torch.bool)
    for y, x in CORNERS_PX.floor().long().tolist():
        outside[y : y + N_PX + 1, x : x + N_PX + 1] = False
    state.object[outside] = float("nan")
    gathered.compute_object_change()
    gathered.apply_to(state.slices, 1.0)
    assert bool(torch.isfinite(state.object[~outside]).all())


def test_momentum_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas_update, "_PIECE_PX", 7)
    values, velocity, anchor = (normal((5, 6), seed) for seed in (1, 2, 3))
    expected_velocity = 0.9 * velocity + (values - anchor)
    expected = values + 0.9 * expected_velocity
    add_momentum_in_place(values, velocity, anchor, 0.9)
    assert_close(velocity, expected_velocity, "double")
    assert_close(values, expected, "double")
    assert_close(anchor, expected, "double")


def test_what_the_caller_gives_is_not_changed() -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=16, simulation_seed=1))
    start = refine(scan, config=RefineConfig(epochs=2), judge=False)
    probe = start.probe
    assert probe is not None
    objects, modes, own = start.object.copy(), probe.copy(), scan.probe.copy()
    again = refine(scan, start, probe=probe, config=RefineConfig(epochs=2), judge=False)
    assert isinstance(again, Reconstruction)
    np.testing.assert_array_equal(start.object, objects)
    np.testing.assert_array_equal(probe, modes)
    np.testing.assert_array_equal(scan.probe, own)


def test_epochs_with_a_copy_leave_the_state_as_it_is() -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=16, simulation_seed=1))
    config = RefineConfig(epochs=4, regularization="none")
    with torch.no_grad(), open_problem(scan) as problem:
        state = initialize_state(problem, scan, None, None, config)
        copied = state.copy()
        before = {name: value.clone() for name, value in vars(state).items() if isinstance(value, torch.Tensor)}
        order = torch.arange(problem.n_frames)
        for _ in range(5):
            run_epoch(problem, copied, config, order, None, frames_per_update=4, update_probe=True)
        copied.fix_gauge()
        copied.history["misfit"].append(1.0)
    assert not torch.equal(copied.object, before["object"])
    assert not torch.equal(copied.probe, before["probe"])
    for name, value in before.items():
        assert torch.equal(getattr(state, name), value), name
    assert not state.history["misfit"]
