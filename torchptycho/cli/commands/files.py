"""Commands that inspect, convert and simulate scan files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from torchptycho.cli.base import WritingCommand, require_png
from torchptycho.core.config import ReadConfig, SimulateConfig, to_dict
from torchptycho.core.config.read import ScanFormat, TiffDtype
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import Scan
from torchptycho.visualization.tables import (
    format_value,
    make_orientation_table,
    make_store_lines,
    make_store_rows,
    make_table,
)

__all__ = ["Convert", "Inspect", "Simulate"]

# Smallest ratio of the misfits of the second best and the best orientation for a clear result.
_MIN_MISFIT_RATIO = 1.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(WritingCommand):
    """Summarize a scan file or a store, and whether it is usable.

    torchptycho inspect scan.npz --plot scan.png
    torchptycho inspect store
    torchptycho inspect scan.cxi --guess-probe --orientation
    """

    scan: Positional[Path]
    """Scan file, or a store."""
    plot: Path | None = None
    """Draw mean pattern, probe, positions and dose into this PNG."""
    orientation: bool = False
    """Rank the eight orientations of the positions by the misfit of a short refinement of a part of the scan; takes
    about a minute."""
    virtual_images: Path | None = None
    """Draw virtual bright and dark field and the centre of mass of an electron scan into this PNG, and find its
    rotation against the detector."""
    json: bool = False
    """Print one JSON object instead of a table."""
    config: Path | None = None
    """YAML or TOML file with the section prepare; flags override it."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)

    def run(self) -> None:
        for option, path in (("--plot", self.plot), ("--virtual-images", self.virtual_images)):
            require_png(option, path)
            self.claim_files(option, path, inputs=[self.scan])
        if (self.scan / "store.json").is_file():
            self._print_store()
            return
        from torchptycho.analysis.inspection import inspect_scan
        from torchptycho.io import read_scan

        try:
            scan = read_scan(self.scan, self.reading)
            with self.show_status(f"reading {self.scan}"):
                summary = inspect_scan(scan)
        except ScanError as error:
            self._print_survey(error)
            return
        if self.plot:
            from torchptycho.visualization.plot import plot_scan

            plot_scan(scan, self.plot)
        report = summary.to_dict()
        if self.orientation:
            from torchptycho.reconstructors.orientation import rank_orientations

            with self.show_status("refining a part of the scan in eight orientations"):
                ranked = rank_orientations(scan)
            report["orientations"] = [dataclasses.asdict(one) for one in ranked]
        if self.virtual_images:
            report["virtual_images"] = self._draw_virtual_images(scan, self.virtual_images)
        if self.json:
            self.print_result(report, json=True)
            return
        table = make_table("", "", title=str(self.scan), show_header=False)
        apart = ("problems", "metadata", "notes", "orientations", "left_out", "near_field", "virtual_images")
        for name, value in report.items():
            if name not in apart:
                table.add_row(name, format_value(value))
        self.console.print(table)
        for note in summary.notes:
            self.console.print(f"- {note}")
        for problem in summary.problems:
            self.console.print(f"! {problem}")
        self.console.print("usable" if summary.usable else "not usable as it is")
        if self.virtual_images:
            self.console.print(report["virtual_images"]["advice"])
        if self.orientation:
            self.console.print(make_orientation_table(ranked))
            if ranked[1].misfit < _MIN_MISFIT_RATIO * ranked[0].misfit:
                self.console.print(
                    "The two best explain the counts about equally well. Where the probe is only guessed this is no "
                    "surprise for an orientation and its reverse (both flips): one image is the twin of the other. "
                    "Give a measured probe with --probe FILE, or a cleaner part of the scan with --frames."
                )

    def _draw_virtual_images(self, scan: Scan, path: Path) -> dict[str, Any]:
        """Draw virtual images; return what they say of the disc and the rotation."""
        from torchptycho.analysis.stem import advise_rotation, compute_virtual_images
        from torchptycho.visualization.plot import plot_virtual_images

        with self.show_status("computing virtual images"):
            images = compute_virtual_images(scan)
        plot_virtual_images(scan, images, path)
        disc = None if images.disc is None else dataclasses.asdict(images.disc)
        advice = advise_rotation(images.rotation, scan.reading)
        return {"disc": disc, **dataclasses.asdict(images.rotation), "advice": advice}

    def _print_survey(self, fault: ScanError) -> None:
        """Print what is in a file that cannot be read as a scan."""
        from torchptycho.analysis.file_survey import survey_file

        with self.show_status(f"reading {self.scan}"):
            survey = survey_file(self.scan, self.reading, fault)
        if self.json:
            if survey.summary is None:
                raise fault
            self.print_result(survey.to_dict(), json=True)
            return
        table = make_table("", "", title=str(self.scan), show_header=False)
        for name, value in (survey.summary or {}).items():
            if name not in ("metadata", "notes", "left_out", "near_field"):
                table.add_row(name, format_value(value))
        if survey.summary is not None:
            self.console.print(table)
        self.console.print("in the file:")
        for array in survey.arrays:
            self.console.print(f"  {array}")
        if survey.summary is None:
            raise fault
        for line in (*survey.faults, *survey.needs):
            self.console.print(f"! {line}")
        self.console.print("not usable as it is")

    def _print_store(self) -> None:
        from torchptycho.data.store import Store

        if self.plot or self.orientation or self.reading != ReadConfig():
            raise ConfigError(f"{self.scan}: is a store, for which only --json can be given. Omit the other options.")
        store = Store.open(self.scan)
        if self.json:
            self.print_result({"scans": make_store_rows(store)}, json=True)
        else:
            for line in make_store_lines(store):
                self.console.print(line)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(WritingCommand):
    """Write a scan file in another format.

    All reading options are applied.

    torchptycho convert scan.cxi scan.npz --crop-px 256 --guess-probe
    torchptycho convert scan.npz product.h5
    torchptycho convert image.npz image.tif --tiff uint16
    """

    scan: Positional[Path]
    """Scan file of any supported format; for TIFF an image file, or a scan with its object."""
    out: Positional[Path]
    """File to write: .npz canonical NPZ; .h5 a Ptychodus product, its frames in NAME-diffraction.h5 next to it
    (those of product.h5 in diffraction.h5, as Ptychodus' batch mode has them); .tif the
    object of an image, as NAME-amplitude.tif and NAME-phase.tif."""
    format: ScanFormat | None = None
    """Format to write; None follows the name."""
    tiff: TiffDtype = "float32"
    """Pixels of TIFF files: 32-bit floats, or 16-bit integers with their scale in the file."""
    compressed: bool = True
    """Compress frames and arrays."""
    json: bool = False
    """Print one JSON object instead of sentences."""
    config: Path | None = None
    """YAML or TOML file with the section prepare; flags override it."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)

    def run(self) -> None:
        if self.out.suffix.lower() in (".tif", ".tiff"):
            self._convert_image()
            return
        from torchptycho.io import read_scan, write_scan
        from torchptycho.io.storage.outputs import refuse_inputs
        from torchptycho.io.write import list_files

        files = list_files(self.out, self.format)
        self.claim_files("out", *files, inputs=[self.scan])
        scan = read_scan(self.scan, self.reading)
        refuse_inputs(files, (file.path for file in scan.files))
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.show_status(f"writing {self.out}"):
            write_scan(scan, self.out, format=self.format, compressed=self.compressed)
        report = {"out": str(self.out), "n_frames": scan.n_frames, "n_px": scan.n_px, "notes": list(scan.notes)}
        self.print_result(report, *(f"- {note}" for note in scan.notes), f"{self.out}: {scan!r}", json=self.json)

    def _convert_image(self) -> None:
        from torchptycho.io import read_reconstruction, write_tiff
        from torchptycho.io.tiff_files import name_tiff_files

        if self.format is not None or self.reading != ReadConfig():
            raise ConfigError(f"{self.out}: TIFF files hold an image as it is. Leave out the options for scans.")
        self.claim_files("out", *name_tiff_files(self.out), inputs=[self.scan])
        image = read_reconstruction(self.scan)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        files = [str(file) for file in write_tiff(image, self.out, dtype=self.tiff)]
        shape = list(image.object.shape)
        self.print_result(
            {"out": files, "shape_px": shape}, f"{', '.join(files)}: {shape[0]}x{shape[1]} px", json=self.json
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulate(WritingCommand):
    """Simulate an experiment and write it as a scan file.

    torchptycho simulate scan.npz --object-kind siemens_star --photons-per-frame 1e5
    """

    out: Positional[Path]
    """Scan file to write (NPZ)."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    simulation: SimulateConfig = dataclasses.field(default_factory=SimulateConfig)

    def run(self) -> None:
        from torchptycho.data.simulation import simulate
        from torchptycho.io import write_scan
        from torchptycho.io.write import list_files

        self.claim_files("out", *list_files(self.out))
        with self.show_status("simulating"):
            scan = simulate(self.simulation)
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_scan(scan, self.out)
        report = {
            "out": str(self.out),
            "n_frames": scan.n_frames,
            "n_px": scan.n_px,
            "simulation": to_dict(self.simulation),
        }
        self.print_result(report, f"{self.out}: {scan!r}", json=self.json)
