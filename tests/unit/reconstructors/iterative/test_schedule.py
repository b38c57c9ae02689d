"""When polishing begins and ends, epoch by epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchptycho.core.config import RefineConfig
from torchptycho.reconstructors.iterative.schedule import (
    advance_polishing,
    compute_polishing_progress,
    count_polishing_epochs_left,
    has_stalled,
    plan_frames_per_update,
)
from torchptycho.reconstructors.iterative.state import RefinementState

# 10 epochs of polishing after 10 others.
CONFIG = RefineConfig(epochs=20, polish=0.5, patience=4, min_improvement=0.01, batch_size=8)


def make_state(misfit: list[float] | None = None, **values: Any) -> RefinementState:
    probe = torch.ones(1, 4, 4, dtype=torch.complex64)
    state = RefinementState.begin(torch.ones(8, 8, dtype=torch.complex64), probe, torch.zeros(3, 2).double())
    state.history["misfit"] = misfit or []
    for name, value in values.items():
        setattr(state, name, value)
    return state


@pytest.mark.parametrize(
    ("misfit", "since", "stalled"),
    [
        # Four epochs or fewer say nothing yet.
        ([5.0, 5.0, 5.0, 5.0], None, False),
        ([5.0, 5.0, 5.0, 5.0, 5.0], None, True),
        # 1 % better than the best before, and not quite.
        ([5.0, 9.0, 9.0, 9.0, 4.94], None, False),
        ([5.0, 9.0, 9.0, 4.96, 9.0], None, True),
        ([5.0, 3.0, 4.94, 4.94, 4.94, 4.94], None, True),
        # Only the present phase counts.
        ([1.0, 1.0, 5.0, 4.0, 4.0, 4.0], 2, False),
        ([1.0, 1.0, 5.0, 4.0, 4.0, 4.0, 4.0], 2, False),
        ([1.0, 1.0, 4.0, 4.0, 4.0, 4.0, 4.0], 2, True),
    ],
)
def test_a_fit_stalls_when_the_last_epochs_do_not_improve_on_those_before(
    misfit: list[float], since: int | None, stalled: bool
) -> None:
    state = make_state(misfit, polishing_since=since)
    assert has_stalled(state, CONFIG) is stalled
    assert not has_stalled(state, RefineConfig(epochs=20, patience=None))


def test_polishing_begins_when_it_is_planned_or_when_the_fit_stalls() -> None:
    improving = [10.0 / (1 + epoch) for epoch in range(9)]
    state = make_state(improving, epoch=9)
    assert advance_polishing(state, CONFIG)
    assert state.polishing_since is None
    state.epoch = 10
    assert advance_polishing(state, CONFIG)
    assert state.polishing_since == 10
    state = make_state([5.0] * 5, epoch=5)
    assert advance_polishing(state, CONFIG)
    assert state.polishing_since == 5
    # It does not begin again.
    state.epoch = 11
    assert advance_polishing(state, CONFIG)
    assert state.polishing_since == 5


def test_a_refinement_ends_when_polishing_stalls() -> None:
    assert not advance_polishing(make_state([5.0] * 10, epoch=10, polishing_since=5), CONFIG)
    assert not advance_polishing(make_state([5.0] * 5, epoch=5), RefineConfig(epochs=20, polish=0, patience=4))
    none = {"strength": 0.0}
    assert not advance_polishing(make_state([5.0] * 10, epoch=10, polishing_since=5, regularization=none), CONFIG)


def test_a_prior_that_acts_has_its_whole_polishing() -> None:
    prior = {"strength": 0.5}
    for epoch, goes_on in ((13, True), (14, False)):
        state = make_state([5.0] * epoch, epoch=epoch, polishing_since=5, regularization=prior)
        assert compute_polishing_progress(state, CONFIG) == min(1.0, (epoch - 4) / 10)
        assert advance_polishing(state, CONFIG) is goes_on


def test_progress_and_epochs_left_add_up() -> None:
    state = make_state(epoch=7)
    assert (compute_polishing_progress(state, CONFIG), count_polishing_epochs_left(state, CONFIG)) == (0.0, 0)
    for epoch in range(10, 22):
        state = make_state(epoch=epoch, polishing_since=10)
        assert compute_polishing_progress(state, CONFIG) == pytest.approx(min(1.0, (epoch - 9) / 10))
        assert count_polishing_epochs_left(state, CONFIG) == 19 - epoch
    # Polishing of less than an epoch takes one.
    short = RefineConfig(epochs=20, polish=0.01)
    state = make_state(epoch=10, polishing_since=10)
    assert (compute_polishing_progress(state, short), count_polishing_epochs_left(state, short)) == (1.0, 0)


def test_updates_grow_from_a_batch_to_all_frames_over_half_of_the_polishing() -> None:
    assert plan_frames_per_update(512, make_state(epoch=9), CONFIG) == 8
    planned = [plan_frames_per_update(512, make_state(epoch=10 + e, polishing_since=10), CONFIG) for e in range(7)]
    assert planned == [round(8 * 64 ** (part / 5)) for part in range(1, 5)] + [512] * 3
    short = RefineConfig(epochs=20, polish=0.01, batch_size=8)
    assert plan_frames_per_update(512, make_state(epoch=10, polishing_since=10), short) == 512
