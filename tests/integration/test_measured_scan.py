"""The default recipe on a measured x-ray scan, shortened: what it reaches in full is in docs/real_scan.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import PrepareConfig, RunConfig, TrainConfig
from torchptycho.io import read_reconstruction, read_scan
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import train


@pytest.mark.contract("train.measured-scan")
def test_default_recipe_locks_in_on_a_measured_scan_within_20_steps(measured_data: Path, tmp_path: Path) -> None:
    reference = measured_data / "siemens-star-128-reference.npz"
    config = RunConfig(prepare=PrepareConfig(probe=str(reference)), train=TrainConfig(steps=20))
    scan = read_scan(measured_data / "siemens-star-128.npz")
    run = train(scan, config, tmp_path / "run", progress=False)
    image = reconstruct(run.checkpoint, scan, progress=False)
    known = read_reconstruction(reference)
    metrics = evaluate(image, known.object, truth_origin_px=known.origin_px)
    # A flat object gives 0, exchanged or mirrored axes below 0.2; the full recipe gives 0.95.
    assert metrics.phase_correlation > 0.9
