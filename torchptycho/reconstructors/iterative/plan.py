"""What a refinement would do: sizes, updates and devices, from the headers of a scan alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torchptycho.core.config import RefineConfig, as_config, to_dict
from torchptycho.core.devices import find_devices
from torchptycho.core.scan import Scan
from torchptycho.io.field import check_scan_field
from torchptycho.io.inputs import as_scan
from torchptycho.io.scan_choice import refuse_several_scans
from torchptycho.reconstructors.iterative.frame_source import plan_frames
from torchptycho.reconstructors.iterative.position_search import plan_search
from torchptycho.reconstructors.iterative.prior_steps import check_regularization
from torchptycho.reconstructors.iterative.problem import lay_out_canvas
from torchptycho.reconstructors.iterative.rpie import choose_batch_size
from torchptycho.reconstructors.iterative.shares import count_useful_processes
from torchptycho.reconstructors.iterative.thick_object import check_slices
from torchptycho.reconstructors.iterative.variable_probe import check_variation

__all__ = ["plan_refinement"]

# Complex numbers of a canvas that are alive at once: object, velocity, anchor, update and what they are computed from.
_CANVASES = 8


def plan_refinement(
    scan: Scan | str | Path,
    config: RefineConfig | dict[str, Any] | None = None,
    device: str = "auto",
    devices: int = 1,
) -> dict[str, Any]:
    """Plan a refinement without reading a frame: where frames are kept, the canvas, the updates of an epoch.

    Sizes are those of one of the processes that share the frames.

    Raises:
        TorchptychoError: what `refine` would refuse before it reads the frames.
    """
    settings, scan = plan_search(as_config(RefineConfig, config)), as_scan(scan)
    refuse_several_scans(scan, "a refinement")
    check_regularization(settings)
    check_variation(settings, scan.n_frames)
    check_slices(settings, scan)
    check_scan_field(scan)
    place = find_devices(device, devices, option="device")[0]
    batch_size = choose_batch_size(settings, scan.n_frames)
    useful = count_useful_processes(devices, batch_size)
    frames = plan_frames(scan, place, -(-scan.n_frames // useful))
    margin_px = math.ceil(settings.position_limit_px) if settings.position_update != "none" else 0
    _, canvas_px = lay_out_canvas(scan, margin_px)
    return {
        "source": scan.source,
        "n_frames": scan.n_frames,
        "n_px": scan.n_px,
        "dtype": str(scan.frames.dtype),
        "domain": scan.domain,
        "frames": frames.place,
        "frames_described": frames.describe(),
        "frames_bytes": frames.n_bytes,
        "canvas_px": list(canvas_px),
        "canvas_bytes": _CANVASES * 8 * settings.n_slices * math.prod(canvas_px),
        "epochs": settings.epochs,
        "batch_size": batch_size,
        "updates_per_epoch": math.ceil(scan.n_frames / batch_size),
        "device": place.type,
        "devices": useful,
        "config": to_dict(settings),
    }
