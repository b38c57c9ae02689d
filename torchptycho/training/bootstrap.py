"""A probe refined for a few epochs, before a network is trained with it."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from torchptycho.core.config import RunConfig, to_dict
from torchptycho.core.progress import EpochProgress
from torchptycho.core.scan import Scan
from torchptycho.io import read_reconstruction, write_reconstruction
from torchptycho.io.fingerprint import fingerprint_scan
from torchptycho.reconstructors.iterative import refine

__all__ = ["refine_probe"]


def refine_probe(scan: Scan, config: RunConfig, keep: Path, *, progress: bool = True) -> Scan:
    """Refine the probe of a scan for a few epochs; return the scan with it and, on request, with refined positions.

    Arguments:
        config: `prepare.bootstrap_probe` epochs with the section `refine`; with 0 the scan is returned unchanged.
        keep: file for the resulting image; if it exists for the same scan and configuration, it is read instead.

    Raises:
        KeyboardInterrupt: it was interrupted; nothing is written then.
    """
    epochs = config.prepare.bootstrap_probe
    if not epochs:
        return scan
    moves = config.refine.position_update
    if config.prepare.bootstrap_positions and moves == "none":
        moves = "frames"
    settings = dataclasses.replace(
        config.refine.without_prior(),
        epochs=epochs,
        probe_update=True,
        position_update=moves if config.prepare.bootstrap_positions else "none",
    )
    asked = {"refine": to_dict(settings), "scan_sha256": fingerprint_scan(scan)}
    image = read_reconstruction(keep) if keep.is_file() else None
    if image is None or {name: image.provenance.get(name) for name in asked} != asked:
        with EpochProgress("probe", epochs) if progress else contextlib.nullcontext() as bar:
            image = refine(scan, config=settings, on_epoch=bar)
        if not image.provenance["complete"]:
            raise KeyboardInterrupt
        keep.parent.mkdir(parents=True, exist_ok=True)
        write_reconstruction(image, keep)
    assert image.probe is not None
    positions_px = image.positions_px if config.prepare.bootstrap_positions else None
    return dataclasses.replace(
        scan,
        probe=image.probe,
        probe_is_calibrated=True,
        positions_px=scan.positions_px if positions_px is None else positions_px,
    )
