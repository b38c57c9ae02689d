"""Commands that refine a scan iteratively."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from tyro.conf import Positional

from torchptycho.cli.base import NextToResult, WritingCommand, require_png
from torchptycho.cli.image_outputs import (
    choose_report_file,
    describe_size,
    join_file_names,
    list_tiff_files,
    require_npz,
    summarize_image,
    write_tiff_files,
)
from torchptycho.core.config import ReadConfig, RefineConfig
from torchptycho.core.config.read import TiffDtype
from torchptycho.core.errors import ConfigError
from torchptycho.core.launched import find_launched_process

if TYPE_CHECKING:
    from torchptycho.core.reconstruction import Reconstruction
    from torchptycho.core.scan import Scan

__all__ = ["Refine", "Resolution"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefinementCommand(WritingCommand):
    """Options of the commands that refine a scan."""

    scan: Positional[Path]
    """Scan file."""
    device: str = "auto"
    """Device: auto, cpu or gpu."""
    devices: int = 1
    """Number of processes on this machine, each with a GPU or a part of the CPU. `refine` distributes the frames among
    them, `resolution` the halves."""
    config: Path | None = None
    """YAML or TOML file with the sections prepare and refine; flags override it."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    refine: RefineConfig = dataclasses.field(default_factory=RefineConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine(RefinementCommand):
    """Fit an image to the counts; no training is needed.

    Refinement starts from a uniform object or from an earlier image.

    torchptycho refine scan.npz --out refined.npz
    torchptycho refine scan.npz --start image.npz --out refined.npz --position-update frames
    torchptycho refine scan.npz --out refined.npz --report --report-frc
    """

    OPTIONAL_FILE_SUFFIXES: ClassVar = {"--report": ".html"}

    start: Path | None = None
    """Start image, written by `reconstruct` or `refine`; None starts from a uniform object."""
    out: Path = Path("refined.npz")
    """Image file to write (NPZ), with the refined probe and positions; a PNG of the same name is drawn next to it."""
    resume: bool = False
    """Continue an earlier refinement into this file, if there is one, up to the requested number of epochs."""
    nodes: int = 1
    """Number of machines, on each of which torchrun or srun has started as many processes as --devices."""
    dry_run: bool = False
    """Report where the frames would be kept, the canvas, and the updates of an epoch, and write nothing."""
    uncertainty: Literal["bootstrap", "fisher"] | None = None
    """Estimate the standard deviation of amplitude and phase at each pixel. bootstrap: from a refinement of counts
    that are simulated from the image, which takes as long as the refinement; fisher: to first order from the
    information of the counts, a quarter of it, without a prior."""
    uncertainty_replicas: int = 1
    """Simulated scans of --uncertainty bootstrap."""
    report: NextToResult | Path | None = None
    """Write a report on the image to this HTML file; --report alone writes it next to the image."""
    report_frc: bool = False
    """Include the FRC of two halves of the scan in the report, which takes two refinements."""
    tiff: TiffDtype | None = None
    """Write amplitude and phase as TIFF files, too: 32-bit floats, or 16-bit integers with their scale."""
    json: bool = False
    """Print one JSON object instead of a sentence."""

    def run(self) -> None:
        require_npz(self.out)
        if self.uncertainty is not None and self.refine.n_slices > 1:
            raise ConfigError(
                f"--uncertainty: expected one slice; found --n-slices {self.refine.n_slices}. Leave one of them out."
            )
        if self.uncertainty_replicas < 1:
            raise ConfigError(f"--uncertainty-replicas: expected 1 or more; found {self.uncertainty_replicas}.")
        if self.uncertainty_replicas > 1 and self.uncertainty != "bootstrap":
            raise ConfigError(
                f"--uncertainty-replicas: expected --uncertainty bootstrap with it; found {self.uncertainty}. Leave it "
                "out, or choose bootstrap."
            )
        launched = find_launched_process()
        if launched is not None:
            launched.check(self.devices, self.nodes)
            if launched.rank:
                self._join_first()
                return
        page = choose_report_file(self.report, self.out, self.report_frc)
        state_file = self.out.with_suffix(".state.npz")
        self.claim_files(
            "--out",
            self.out,
            state_file,
            self.out.with_suffix(".png"),
            *list_tiff_files(self.out, self.tiff),
            inputs=[self.scan],
            resumes=self.resume and state_file.exists(),
        )
        self.claim_files("--report", page, inputs=[self.scan], resumes=self.resume and state_file.exists())
        if self.dry_run:
            self._print_plan()
            return
        from torchptycho.core.progress import EpochProgress
        from torchptycho.core.reconstruction import describe_regularization
        from torchptycho.io import read_scan, write_reconstruction
        from torchptycho.reconstructors.iterative import refine
        from torchptycho.visualization.plot import plot_reconstruction

        scan = read_scan(self.scan, self.reading)
        start = self._read_start()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with EpochProgress("refining", self.refine.epochs) as bar:
            image = refine(
                scan,
                start,
                config=self.refine,
                device=self.device,
                devices=self.devices,
                nodes=self.nodes,
                resume=self.resume,
                on_epoch=bar,
                state_file=state_file,
                scratch=self.out.parent,
            )
        write_reconstruction(image, self.out)
        if self.uncertainty is not None:
            image = self._add_uncertainty(image, scan, start)
            write_reconstruction(image, self.out)
        tiff = write_tiff_files(image, self.out, self.tiff)
        picture = plot_reconstruction(image, self.out.with_suffix(".png"))
        if page is not None:
            from torchptycho.visualization.report import write_refinement_report

            with self.show_status(f"writing {page}"):
                write_refinement_report(image, scan, page, self.refine, halves=self.report_frc, device=self.device)
        misfit = image.history["misfit"]
        fit = ""
        if misfit:
            left = image.history["unexplained"][-1]
            fit = (
                f"misfit {misfit[-1]:.4g} (1 is photon noise; {left:.1%} of the variation between frames unexplained) "
            )
        report = summarize_image(image, self.out, picture, page, tiff)
        prior = describe_regularization(image)
        regularization = image.provenance["regularization"]
        self.print_result(
            report | {"epochs": len(misfit), "regularization": regularization},
            f"{join_file_names(self.out, *tiff, picture, page)}: {describe_size(image)}, "
            f"{fit}after {len(misfit)} epochs in {image.provenance['seconds']:.1f} s{', ' + prior if prior else ''}",
            json=self.json,
        )

    def _add_uncertainty(self, image: Reconstruction, scan: Scan, start: Reconstruction | None) -> Reconstruction:
        # An image that was interrupted is not what its options would have made.
        if self.uncertainty is None or not image.provenance["complete"]:
            return image
        from torchptycho.reconstructors.iterative import estimate_uncertainty

        try:
            with self.show_status("estimating the uncertainty"):
                return estimate_uncertainty(
                    image,
                    scan,
                    method=self.uncertainty,
                    replicas=self.uncertainty_replicas,
                    config=self.refine,
                    start=start,
                    device=self.device,
                )
        except KeyboardInterrupt:
            _log.warning("%s: written without error bars, whose estimate was interrupted", self.out)
            raise

    def _read_start(self) -> Reconstruction | None:
        from torchptycho.io import read_reconstruction

        start = None if self.start is None else read_reconstruction(self.start)
        if start is not None and self.reading.probe is not None:
            start = dataclasses.replace(start, probe=None)
        return start

    def _join_first(self) -> None:
        """Take part as one of several processes; the first of them reports and writes."""
        from torchptycho.io import read_scan
        from torchptycho.reconstructors.iterative import refine

        logging.getLogger("torchptycho").setLevel(logging.ERROR)
        refine(
            read_scan(self.scan, self.reading),
            self._read_start(),
            config=self.refine,
            device=self.device,
            devices=self.devices,
            nodes=self.nodes,
            resume=self.resume,
            state_file=self.out.with_suffix(".state.npz"),
            scratch=self.out.parent,
        )

    def _print_plan(self) -> None:
        from torchptycho.io import read_scan
        from torchptycho.reconstructors.iterative.plan import plan_refinement

        plan = plan_refinement(read_scan(self.scan, self.reading), self.refine, self.device, self.devices)
        height, width = plan["canvas_px"]
        self.print_result(
            plan,
            f"{plan['source']}: {plan['n_frames']} frames of {plan['n_px']}x{plan['n_px']} px, "
            f"{plan['frames_described']}",
            f"canvas of {height}x{width} px, about {plan['canvas_bytes'] / 1e6:.4g} MB with all that is computed on it",
            f"{plan['epochs']} epochs on {plan['devices']} x {plan['device']}, in each "
            f"{plan['updates_per_epoch']} updates of {plan['batch_size']} frames",
            json=self.json,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolution(RefinementCommand):
    """Estimate the resolution without a ground truth.

    Two halves of the frames are refined separately, and their images correlated.

    torchptycho resolution scan.npz --plot frc.png
    """

    plot: Path | None = None
    """Draw the Fourier ring correlation into this PNG."""
    json: bool = False
    """Print one JSON object instead of a sentence."""

    def run(self) -> None:
        require_png("--plot", self.plot)
        self.claim_files("--plot", self.plot, inputs=[self.scan])
        from torchptycho.io import read_scan
        from torchptycho.reconstructors.resolution import resolution

        scan = read_scan(self.scan, self.reading)
        with self.show_status("refining two halves of the frames"):
            agreement = resolution(scan, config=self.refine, device=self.device, devices=self.devices)
        if self.plot:
            from torchptycho.visualization.plot import plot_frc

            plot_frc(agreement.metrics, self.plot, halves=True)
        metres = "" if agreement.half_period_m is None else f" ({agreement.half_period_m * 1e9:.3g} nm)"
        values = {"half_period_px": agreement.half_period_px, "half_period_m": agreement.half_period_m}
        self.print_result(
            values | {"metrics": agreement.metrics.to_dict()},
            f"{self.scan}: half period {agreement.half_period_px:.3g} px{metres} at the 1/2-bit threshold, from two "
            f"halves of {scan.n_frames} frames",
            json=self.json,
        )
