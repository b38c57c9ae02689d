"""Refinement on a CUDA device gives what it gives on the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedGpu
from tolerances import relative_l2

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import frame_source, refine
from torchptycho.reconstructors.orientation import rank_orientations

pytestmark = pytest.mark.gpu

SCAN = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=36, photons_per_frame=1e6, simulation_seed=3))
SHORT = RefineConfig(epochs=4, batch_size=9, position_start_epoch=1, probe_start_epoch=1, patience=None)


def assert_same(there: Reconstruction, here: Reconstruction) -> None:
    # The order of additions differs, and some epochs carry that on.
    assert relative_l2(torch.from_numpy(there.object), torch.from_numpy(here.object)) < 1e-2
    assert there.history["misfit"] == pytest.approx(here.history["misfit"], rel=1e-2)
    for name in ("probe", "positions_px", "background"):
        one, other = getattr(there, name), getattr(here, name)
        assert (one is None) == (other is None)
        assert one is None or relative_l2(torch.from_numpy(one), torch.from_numpy(other)) < 1e-2


@pytest.mark.contract("refine.devices")
@pytest.mark.parametrize("method", ["rpie", "lsqml", "gradient"])
@pytest.mark.parametrize("position_update", ["none", "affine", "frames", "both"])
def test_refined_image_is_the_same_on_cpu_and_gpu(cuda: torch.device, method: Any, position_update: Any) -> None:
    config = dataclasses.replace(SHORT, method=method, position_update=position_update)
    assert_same(refine(SCAN, config=config, device="gpu"), refine(SCAN, config=config, device="cpu"))


@pytest.mark.contract("refine.devices")
@pytest.mark.parametrize(
    "options",
    [
        {"n_modes": 3, "background": True},
        {"smoothness_weight": 0.1, "tv_weight": 0.1},
        {"likelihood": "amplitude"},
        {"method": "gradient", "n_modes": 2, "background": True, "tv_weight": 0.01},
        {"method": "gradient", "likelihood": "amplitude", "optimizer": "lbfgs", "n_modes": 2},
        {"method": "lsqml", "n_modes": 2, "patience": 1, "polish": 0.5},
    ],
)
def test_all_options_are_the_same_on_cpu_and_gpu(cuda: torch.device, options: dict[str, Any]) -> None:
    config = dataclasses.replace(SHORT, **options)
    assert_same(refine(SCAN, config=config, device="gpu"), refine(SCAN, config=config, device="cpu"))


@pytest.mark.contract("refine.devices")
def test_a_masked_scan_of_amplitudes_goes_on_from_an_image_and_from_a_state(cuda: torch.device, tmp_path: Path) -> None:
    mask = np.ones((32, 32), bool)
    mask[3:6, 10:] = False
    scan = dataclasses.replace(SCAN, mask=mask, domain="amplitude")
    config, images = dataclasses.replace(SHORT, position_update="both"), {}
    for device in ("cpu", "cuda"):
        file = tmp_path / device
        start = refine(scan, config=dataclasses.replace(config, epochs=1), device=device)
        refine(scan, start, config=dataclasses.replace(config, epochs=2), device=device, state_file=file)
        images[device] = refine(scan, config=config, device=device, state_file=file, resume=True)
    assert_same(images["cuda"], images["cpu"])


@pytest.mark.contract("refine.devices")
def test_orientations_are_ranked_the_same(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    there = rank_orientations(SCAN, frames=9, epochs=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = rank_orientations(SCAN, frames=9, epochs=1)
    assert [one.misfit for one in there] == pytest.approx([one.misfit for one in here], rel=1e-2)


@pytest.mark.contract("refine.devices")
def test_counts_that_do_not_fit_onto_the_gpu_stay_in_memory(machine: EmulatedGpu) -> None:
    machine.free_bytes = 2 * 36 * 32 * 32 * 4
    assert_same(refine(SCAN, config=SHORT, device="gpu"), refine(SCAN, config=SHORT, device="cpu"))


@pytest.mark.contract("refine.devices")
def test_counts_that_do_not_fit_into_memory_either_are_streamed(
    machine: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = refine(SCAN, config=SHORT, device="cpu")
    machine.free_bytes = 2 * 36 * 32 * 32 * 4
    monkeypatch.setattr(frame_source, "MAX_MEMORY_BYTES", 0)
    assert_same(refine(SCAN, config=SHORT, device="gpu"), here)


@pytest.mark.contract("refine.waits")
@pytest.mark.parametrize("method", ["rpie", "gradient"])
def test_a_gpu_is_waited_for_as_often_for_many_batches_as_for_few(machine: EmulatedGpu, method: Any) -> None:
    n_syncs = []
    for batch_size in (36, 9):
        before = machine.n_syncs
        refine(SCAN, config=dataclasses.replace(SHORT, method=method, epochs=2, batch_size=batch_size), device="gpu")
        n_syncs.append(machine.n_syncs - before)
    assert n_syncs[0] == n_syncs[1]
