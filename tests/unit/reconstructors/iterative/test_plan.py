"""What a refinement is going to do, and which state files it may continue."""

from __future__ import annotations

import pytest

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative.plan import plan_refinement
from torchptycho.reconstructors.iterative.refinement import build_fingerprint

SCAN = simulate(SimulateConfig(n_px=16, object_px=48, n_frames=30, photons_per_frame=1e4, probe_defocus_waves=1))


@pytest.mark.contract("cli.dry-run")
def test_plan_names_the_scan_and_the_work() -> None:
    plan = plan_refinement(SCAN, RefineConfig(epochs=3, batch_size=8), device="cpu")
    named = ("source", "n_frames", "n_px", "dtype", "domain", "epochs", "batch_size", "updates_per_epoch", "device")
    assert [plan[name] for name in named] == [SCAN.source, 30, 16, "uint16", "counts", 3, 8, 4, "cpu"]
    assert plan["config"]["epochs"] == 3
    assert {"frames", "frames_described", "frames_bytes", "canvas_px", "canvas_bytes", "devices"} < set(plan)


def test_state_is_continued_with_other_epochs_and_patience_alone() -> None:
    first, more, other = (
        build_fingerprint(SCAN, RefineConfig(**options))
        for options in ({"epochs": 7, "patience": 4}, {"epochs": 50}, {"epochs": 7, "alpha": 0.3})
    )
    assert first == more != other
    # What files hold that were written before.
    assert (first["refine.epochs"], first["refine.patience"]) == (1, None)
