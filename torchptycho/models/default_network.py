"""The network that needs no training: the default generator around a scan's own probe."""

from __future__ import annotations

import torch

from torchptycho.core.config import GroupConfig, RunConfig, to_dict
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.io import iter_checked_chunks
from torchptycho.models.generators import find_generator
from torchptycho.models.network import PtychoNetwork
from torchptycho.physics.scaling import compute_probe_factor, measure_scaling, sum_frames

__all__ = ["build_default_network", "choose_gridsize"]

# Larger groups determine their object better, at no more time (benchmarks/default_network.py); from 5 on little is
# gained.
_MIN_GRIDSIZE, _MAX_GRIDSIZE = 2, 4


def build_default_network(scan: Scan, config: RunConfig | None = None) -> PtychoNetwork:
    """Build a network that reconstructs a scan without training.

    The default generator begins as regularised PIE on small groups of frames: its learnt correction is zero. Statistics
    of a training set are not needed, because the scan brings its own, which takes a pass over its frames.

    Arguments:
        scan: whose probe, mask and scale the network takes.
        config: None takes the defaults, with groups of up to 4 x 4 frames.

    Raises:
        ScanError: the generator does not take frames of this size, a frame holds what no detector counts, or the
            probe's far field misses the good pixels.
    """
    config = config or RunConfig(group=GroupConfig(gridsize=choose_gridsize(scan.n_frames)))
    _check_size(scan, config)
    total = sum(float(sum_frames(chunk, scan.domain).sum()) for chunk in iter_checked_chunks(scan))
    nphotons = config.prepare.nphotons or scan.photons_per_frame
    scaling = measure_scaling(total / scan.n_frames, scan.n_px, scan.domain, nphotons)
    network = PtychoNetwork(to_dict(config), scan.n_px, n_modes=len(scan.probe), domain=scan.domain)
    probe = torch.from_numpy(scan.probe) * compute_probe_factor(scan, scaling)
    network.probe_parts.data = torch.view_as_real(probe[None].to(torch.complex64)).contiguous()
    network.input_scale.fill_(scaling.input_scale)
    network.photons_per_frame.fill_(scaling.photons_per_frame)
    network.masks.copy_(torch.from_numpy(scan.mask)[None])
    return network.eval()


def choose_gridsize(n_frames: int) -> int:
    """Choose the largest gridsize up to 4 with which a scan has two groups or more, at least 2."""
    sizes = range(_MAX_GRIDSIZE, _MIN_GRIDSIZE, -1)
    return next((size for size in sizes if n_frames >= 2 * size**2), _MIN_GRIDSIZE)


def _check_size(scan: Scan, config: RunConfig) -> None:
    sizes = find_generator(config.model.generator).supported_n_px
    if scan.n_px not in sizes:
        raise ScanError(
            scan.source,
            "frames",
            expected=f"frames of N = {', '.join(map(str, sizes))} px, which networks take",
            found=f"N = {scan.n_px}",
            remedy="Crop or pad them with --crop-px, or use `refine`, which takes any even N.",
        )
