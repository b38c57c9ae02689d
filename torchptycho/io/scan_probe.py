"""The probe of a scan: an option's, the file's, or a guess from the frames."""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex64

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.io.electron_calibration import make_guessed_electron_probe
from torchptycho.io.frames.processing import Processing, resample_probe
from torchptycho.io.guesses import compute_mean_pattern, estimate_probe, fill_masked
from torchptycho.io.near_field_reading import estimate_near_field_probe, pad_probe
from torchptycho.io.probe_files import PROBE_REMEDY, ProbeFile, read_probe_file
from torchptycho.io.probe_fitting import fit_probe
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.scan_geometry import find_reference_edge

__all__ = ["PROBE_GUESSED", "build_probe"]

PROBE_GUESSED = "probe guessed"
"""How the note begins on a scan whose probe is a guess."""


def build_probe(
    recorded: RawScan, scan: Scan, steps: Processing | None, config: ReadConfig, notes: list[str]
) -> Complex64[np.ndarray, "p n n"]:
    """Build the probe for the frames of a scan.

    Arguments:
        scan: built but for its probe.
        steps: what is done to the frames of the file; None for nothing.

    Raises:
        ScanError: there is none, or it is of another size.
    """
    n_px, edge = scan.n_px, find_reference_edge(recorded)
    probe = None
    if config.probe is not None:
        probe = read_probe_file(config.probe, n_px)
        notes.append(f"probe of {config.probe}")
    elif recorded.probe is not None:
        probe = ProbeFile(path=recorded.path, key="probe", modes=recorded.probe)
    if probe is None:
        if not config.guess_probe:
            raise ScanError(
                recorded.path,
                None,
                expected="a probe",
                found="none that is read" if "probe" in config.ignore else "none in the file",
                remedy=f"Give {PROBE_REMEDY}",
                part="probe",
            )
        if scan.geometry.propagation == "near":
            notes.append("probe guessed from the mean image, propagated back to the sample")
            pattern = compute_mean_pattern(scan.frames, scan.domain)
            return estimate_near_field_probe(pattern, scan.mask, scan.geometry)
        if config.convergence_mrad is not None:
            modes, aperture = make_guessed_electron_probe(recorded, scan.geometry, n_px, config)
            notes.append(f"{PROBE_GUESSED} from {aperture}")
            return modes
        known = scan.geometry.wavelength_m is not None and scan.geometry.object_pixel_m is not None
        if config.probe_defocus_m and not known:
            raise ScanError(
                recorded.path,
                None,
                expected="energy and object pixel, for probe_defocus_m",
                found="not both",
                remedy="Give --energy-eV, --distance-m and --detector-pixel-m.",
            )
        notes.append(f"{PROBE_GUESSED} from the mean pattern, {config.probe_defocus_m:g} m from the focus")
        pattern = fill_masked(compute_mean_pattern(scan.frames, scan.domain), scan.mask)
        return estimate_probe(pattern, scan.geometry, config.probe_defocus_m)
    size = probe.modes.shape[-1]
    if config.probe is None and size == n_px:
        return probe.modes
    if scan.geometry.propagation == "near" and (steps is None or steps.binning == 1):
        return pad_probe(probe.modes, n_px)
    if steps is not None and size == edge and (config.probe is None or (size != n_px and probe.pixel_m is None)):
        # The probe belongs to the recorded frames, and is cropped and binned like them.
        return resample_probe(probe.modes, n_px, steps.binning)
    if config.probe is None and size == recorded.positions_n_px:
        # The object pixel of the file belongs to its probe, and would be different for frames of this size.
        raise ScanError(
            recorded.path,
            "probe",
            expected=f"a probe of {n_px}x{n_px} px, as the frames",
            found=f"{size}x{size} px",
            remedy=f"Cut the frames with --crop-px {size}, or give another probe with --probe FILE.",
            part="probe",
        )
    return fit_probe(probe, scan, notes)
