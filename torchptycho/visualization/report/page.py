"""One page about one image: written once, readable anywhere."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import jinja2
import numpy as np
from jaxtyping import Complex

from torchptycho.analysis.evaluation import Metrics
from torchptycho.analysis.inspection import inspect_scan
from torchptycho.analysis.verdict import judge_image
from torchptycho.core.reconstruction import Reconstruction, describe_regularization, project_slices
from torchptycho.core.scan import Scan
from torchptycho.core.versions import collect_versions
from torchptycho.io.inputs import as_reconstruction, as_scan
from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.visualization.plot.panels import choose_length_unit
from torchptycho.visualization.report import run_sections, sections
from torchptycho.visualization.report.pattern_panels import DetectorModel
from torchptycho.visualization.report.prior_section import make_prior_section
from torchptycho.visualization.report.slices_section import make_slices_section
from torchptycho.visualization.report.uncertainty_section import make_uncertainty_section
from torchptycho.visualization.report.variation_section import make_variation_section

__all__ = ["write_report"]


def write_report(
    image: Reconstruction | str | Path,
    scan: Scan | str | Path,
    path: str | Path,
    *,
    probe: Complex[np.ndarray, "p n n"] | None = None,
    detect: DetectorModel | None = None,
    history: dict[str, list[tuple[int, float]]] | None = None,
    halves: Metrics | None = None,
    plain: Reconstruction | None = None,
    title: str | None = None,
) -> Path:
    """Write an HTML report on an image, its fit to the counts, and its provenance.

    The file is self-contained and written atomically. The frames are read twice.

    Arguments:
        scan: the scan of the image.
        probe: modes in sqrt(photons) that belong to the image; None takes those in the image. Without either, no
            patterns are predicted.
        detect: background, scale and blur of the model that made the image, for the predicted patterns.
        history: curves of its training, from `read_history`.
        halves: Fourier ring correlation of two halves of the scan, from `resolution`.
        plain: the image without the prior that acted on it.
        title: heading; None takes the name of the scan.

    Raises:
        ScanError: the frames cannot be read, or the path is not writable.
    """
    start, path = time.perf_counter(), Path(path)
    image, scan = as_reconstruction(image, "image"), as_scan(scan)
    probe = image.probe if probe is None else probe
    summary = inspect_scan(scan)
    parts = [
        run_sections.make_verdict_section(judge_image(project_slices(image), summary)),
        sections.make_image_section(project_slices(image)),
        make_slices_section(image, scan),
        make_uncertainty_section(project_slices(image)),
        make_prior_section(project_slices(image), None if plain is None else project_slices(plain)),
        sections.make_truth_section(image, scan),
        None if probe is None else sections.make_patterns_section(scan, image, probe, detect),
        sections.make_curves_section(image, history or {}),
        None if halves is None else sections.make_resolution_section(halves),
        None if probe is None else sections.make_probe_section(probe, image.object_pixel_m),
        make_variation_section(image),
        sections.make_positions_section(scan, image),
        run_sections.make_data_section(summary),
        run_sections.make_configuration_section(image),
        run_sections.make_provenance_section(image, round(time.perf_counter() - start, 2)),
    ]
    here = collect_versions()
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    name = title or Path(scan.source).name
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("torchptycho.visualization", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    text = environment.get_template("page.html").render(
        title=name,
        subtitle=f"Ptychographic image of {scan.n_frames} frames of {scan.n_px}×{scan.n_px} px",
        version=here["torchptycho"],
        key=_collect_key_figures(image, scan, summary.photons_mean, halves),
        sections=[part for part in parts if part is not None],
        footer=f"Written {now} by torchptycho {here['torchptycho']}. This file is self-contained.",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as target:
        target.write(text.encode("utf-8"))
    return path


def _collect_key_figures(
    image: Reconstruction, scan: Scan, photons: float | None, halves: Metrics | None
) -> list[tuple[str, str]]:
    *slices, height, width = image.object.shape
    facts = [("Image", f"{height} × {width} px")]
    facts += [("Slices", f"{n}") for n in slices]
    if image.object_pixel_m:
        factor, unit = choose_length_unit(image.object_pixel_m)
        facts.append(("Pixel", f"{image.object_pixel_m / factor:.4g} {unit}"))
    if photons is not None:
        facts.append(("Photons per frame", sections.format_photons(photons).removesuffix(" photons")))
    if image.history.get("misfit"):
        facts.append(("Misfit (noise is 1)", f"{image.history['misfit'][-1]:.4g}"))
    if image.history.get("residual"):
        facts.append(("Residual / counts", f"{image.history['residual'][-1]:.2%}"))
    if image.history.get("unexplained"):
        facts.append(("Variation between frames unexplained", f"{image.history['unexplained'][-1]:.1%}"))
    if (prior := describe_regularization(image)) is not None:
        facts.append(("Prior", prior))
    if halves is not None:
        facts.append(("Half period, ½ bit", sections.format_resolution(halves)))
    if "seconds" in image.provenance:
        label = "Computed in, without training" if "checkpoint" in image.provenance else "Computed in"
        facts.append((label, f"{image.provenance['seconds']:.1f} s"))
    return facts
