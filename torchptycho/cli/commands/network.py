"""Commands that train a network and reconstruct with it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from torchptycho.cli import image_outputs
from torchptycho.cli.base import NEXT_TO_RESULT, ModelCommand, NextToResult, WritingCommand, split_checkpoint
from torchptycho.cli.commands.stores import require_scans
from torchptycho.cli.remedies import describe_error
from torchptycho.core.config import (
    ExperimentConfig,
    GroupConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    PrepareConfig,
    ReadConfig,
    ReconstructConfig,
    RunConfig,
    TrainConfig,
    from_dict,
    load_config,
    to_dict,
)
from torchptycho.core.config.read import TiffDtype
from torchptycho.core.errors import ConfigError, ExportError, ScanError, TorchptychoError
from torchptycho.visualization.tables import make_plan_lines

if TYPE_CHECKING:
    from torchptycho.core.scan import Scan
    from torchptycho.models.network import PtychoNetwork

    OpenScan = Callable[[Path], tuple[Scan, PtychoNetwork, ReconstructConfig]]

__all__ = ["Reconstruct", "Train"]

# torch, lightning and matplotlib are imported inside `run`, so that help and errors appear without delay.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(WritingCommand):
    """Train the physics-informed network on scans, without labels.

    torchptycho train scan.npz --out run
    torchptycho train scan.npz --out run --probe refined.npz --steps 2000
    torchptycho train new.npz --out tuned --from run --freeze-encoder --learning-rate-factor 0.2
    torchptycho train day1.npz day2.npz --val-scans day3.npz --out run
    """

    scans: Positional[tuple[str, ...]]
    """Scan files, folders of them, or patterns; or one prepared store."""
    out: Path
    """Folder of the run: configuration, store, checkpoints, metrics."""
    val_scans: tuple[str, ...] = ()
    """Scans for validation only, with all of their frames."""
    start: Annotated[Path | None, arg(name="from")] = None
    """Checkpoint, or folder of a run, whose network is fine-tuned on these scans."""
    resume: bool = False
    """Continue the run in this folder from its last checkpoint; begin it where there is none yet."""
    dry_run: bool = False
    """Read and check everything, report the number of steps and what would be written, and write nothing."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    config: Path | None = None
    """YAML or TOML file with the sections prepare, group, model, experiment, loss, train, log, reconstruct; flags
    override it."""
    prepare: PrepareConfig = dataclasses.field(default_factory=PrepareConfig)
    group: GroupConfig = dataclasses.field(default_factory=GroupConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    experiment: ExperimentConfig = dataclasses.field(default_factory=ExperimentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def run(self) -> None:
        require_scans((*self.scans, *self.val_scans))
        from torchptycho.training.train import read_history, train
        from torchptycho.visualization.plot import plot_history

        later = load_config(self.config) if self.config else RunConfig()
        config = dataclasses.replace(
            later,
            prepare=self.prepare,
            group=self.group,
            model=self.model,
            experiment=self.experiment,
            loss=self.loss,
            train=self.train,
            log=self.log,
        )
        how: dict[str, Any] = {"val_scans": self.val_scans, "start": self.start, "resume": self.resume}
        how["overwrite"] = self.overwrite
        if self.dry_run:
            from torchptycho.training.dry_run import plan_training

            with self.show_status("reading"):
                plan = plan_training(self.scans, config, self.out, **how)
            self.print_result(plan, *make_plan_lines(plan), json=self.json)
            return
        result = train(self.scans, config, self.out, **how)
        if result.rank:
            return
        plot_history(read_history(self.out), self.out / "history.png")
        losses = {name: value for name, value in sorted(result.metrics.items()) if name in ("train/loss", "val/loss")}
        report = {
            "checkpoint": str(result.checkpoint),
            "last": str(result.last),
            "seconds": result.seconds,
            "start_loss": result.start_loss,
            "best_loss": result.best_loss,
            "improved": result.improved,
        }
        self.print_result(
            report | {"metrics": result.metrics},
            f"{result.checkpoint}: trained in {result.seconds:.0f} s, "
            + ", ".join(f"{name} {value:.4g}" for name, value in losses.items()),
            json=self.json,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct(ModelCommand, WritingCommand):
    """Reconstruct an image of each scan in one pass of a network.

    Without a checkpoint, the default network, which works untrained, is used with the scan's own probe.

    torchptycho reconstruct scan.npz --out image.npz
    torchptycho reconstruct run scan.npz --out image.npz
    torchptycho reconstruct run scan.npz --out image.npz --refine 50 --report
    torchptycho reconstruct run night/*.npz --out images
    """

    OPTIONAL_FILE_SUFFIXES: ClassVar = {"--report": ".html"}

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="[CHECKPOINT] SCAN [SCAN ...]")]
    """A checkpoint or bundle, the folder of a run (its best checkpoint), or an exported file (.onnx, .pt2), and scan
    files; without a checkpoint only scan files."""
    out: Path | None = None
    """Image file to write (NPZ), by default reconstruction.npz; a PNG of the same name is drawn next to it. With
    several scans a folder, by default reconstructions, in which images have the names of their scans."""
    accelerator: str = "auto"
    """Device: auto, cpu or gpu."""
    engine: Literal["torch", "onnx", "aot"] | None = None
    """Inference engine; for onnx and aot a checkpoint is exported first. None is ONNX Runtime for .onnx files,
    otherwise torch. A .pt2 file is machine code, which runs when it is loaded, and needs --engine aot."""
    devices: int = 1
    """Number of processes among which the frames of a scan are distributed, each with a GPU or a part of the CPU."""
    config: Path | None = None
    """YAML or TOML file with the section prepare; flags override it."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    stitch_weight: Literal["probe", "central"] | None = None
    """Weights for averaging overlapping patches: |P|^2, or 1 in the central half; None as trained."""
    agree_phases: bool | None = None
    """Align the global phase of each group with its neighbours; None as trained."""
    input_scale: Literal["training", "scan"] | None = None
    """Scale of the network's input: that of training, or of this scan (if its dose differs); None as trained."""
    training_scan: int | None = None
    """Number of the training scan whose probe and scale are used, if there were several; None as trained."""
    predict_batch_size: int | Literal["auto"] | None = None
    """Frames per forward pass. A CPU computes one batch per core in parallel, up to 8, and needs memory for all of
    them, except with OMP_NUM_THREADS=1. auto: the fastest on a CPU, the largest that fits on a GPU. None as trained."""
    predict_precision: Literal["32-true", "bf16-mixed"] | None = None
    """Arithmetic of the network; None as trained."""
    predict_compile: bool | None = None
    """Compile the network with torch.compile, worthwhile for many scans; None as trained."""
    predict_passes: int | None = None
    """Number of predictions of each frame, each in a group with other neighbours; None as trained."""
    absolute_scale: bool | None = None
    """Scale the object so that it and a constant background best fit the counts of the scan; None as trained."""
    refine: int = 0
    """Epochs of refinement afterwards, with the options in the section refine of the network's configuration."""
    report: NextToResult | Path | None = None
    """Write a report on the image to this HTML file; --report alone writes it next to the image."""
    report_frc: bool = False
    """Include the FRC of two halves of the scan in the report, which takes two refinements."""
    tiff: TiffDtype | None = None
    """Write amplitude and phase as TIFF files, too: 32-bit floats, or 16-bit integers with their scale."""
    json: bool = False
    """Print one JSON object instead of a sentence."""

    def run(self) -> None:
        checkpoint, scans = split_checkpoint(self.inputs)
        if not scans:
            raise ConfigError(f"expected at least one scan file after {checkpoint}; found none.")
        images = self._choose_image_files(scans)
        if self.refine < 0:
            raise ConfigError(f"--refine: expected a number of epochs, 0 for none; found {self.refine}.")
        open_scan_and_network = self._use_default_network() if checkpoint is None else self._use_checkpoint(checkpoint)
        # The modules for stitching take as long to import as the prediction of a small scan.
        threading.Thread(target=_import_ahead, daemon=True).start()
        failed, report = [], []
        for scan, image in images.items():
            try:
                report.append(self._reconstruct(open_scan_and_network, scan, image))
            except ExportError:
                # Not caused by a scan.
                raise
            except (TorchptychoError, OSError, FloatingPointError) as error:
                if len(images) == 1:
                    raise
                failed.append(scan)
                sys.stderr.write(f"torchptycho: {describe_error(error, type(self))}\n")
        if self.json:
            self.print_result(report[0] if len(images) == 1 else {"images": report}, json=True)
        if failed:
            raise ScanError(
                ", ".join(map(str, failed)),
                None,
                expected=f"{len(images)} scans that can be reconstructed",
                found=f"{len(failed)} that cannot, as reported above",
                remedy="The images of the others are written.",
            )

    def _use_checkpoint(self, checkpoint: Path) -> OpenScan:
        """Load a trained network, and return a function that opens a scan and the network for it."""
        from torchptycho.models.loading import export_for_engine, load_for_inference
        from torchptycho.reconstructors.network_reconstruction import (
            check_fits,
            check_network_options,
            make_read_config,
        )

        with self.show_status("opening the network"):
            network = load_for_inference(
                checkpoint, self.engine, accelerator=self.accelerator, trust_generator=self.trust_generator
            )
        config = self._complete_config(network.config.reconstruct)
        check_network_options(network, config, self.devices, self.engine)
        reading = make_read_config(network.config.prepare, self.reading)

        @functools.cache
        def export_once() -> PtychoNetwork:
            with self.show_status("exporting the network") if self.engine else contextlib.nullcontext():
                return export_for_engine(
                    network, self.engine, training_scan=config.training_scan, accelerator=self.accelerator
                )

        def open_scan(path: Path) -> tuple[Scan, PtychoNetwork, ReconstructConfig]:
            from torchptycho.io import read_scan

            scan = read_scan(path, reading)
            check_fits(network, scan.source, scan.n_px, scan.domain)
            return scan, export_once(), config

        return open_scan

    def _use_default_network(self) -> OpenScan:
        """Return a function that opens a scan and the default network around its probe."""
        if self.engine not in (None, "torch"):
            raise ConfigError(
                f"--engine: expected torch without a checkpoint; found {self.engine}. Train a network and name it."
            )
        if self.training_scan:
            raise ConfigError(
                "--training-scan: expected a checkpoint before the scans; found none. Name one, or omit this option."
            )
        config = self._complete_config(ReconstructConfig())

        def open_scan(path: Path) -> tuple[Scan, PtychoNetwork, ReconstructConfig]:
            from torchptycho.io import read_scan
            from torchptycho.models.default_network import build_default_network

            scan = read_scan(path, self.reading)
            return scan, build_default_network(scan), config

        return open_scan

    def _complete_config(self, trained: ReconstructConfig) -> ReconstructConfig:
        """Complete the options that are asked for with those of training."""
        values = to_dict(trained)
        asked = {name: getattr(self, name) for name in values if getattr(self, name) is not None}
        return from_dict(ReconstructConfig, values | asked, source="reconstruct")

    def _choose_image_files(self, scans: tuple[Path, ...]) -> dict[Path, Path]:
        """Choose the image file of each scan."""
        if len(scans) == 1:
            out = self.out or Path("reconstruction.npz")
            self._claim_image_files(out, scans)
            return {scans[0]: out}
        if self.report not in (None, NEXT_TO_RESULT):
            raise ConfigError(
                "--report: expected no file name with several scans; each report is written next to its image."
            )
        folder = self.out or Path("reconstructions")
        if folder.suffix.lower() == ".npz" or folder.is_file():
            raise ConfigError(f"--out: expected a folder for the images of {len(scans)} scans; found {folder}.")
        images = {scan: folder / f"{scan.stem}.npz" for scan in scans}
        for image in images.values():
            self._claim_image_files(image, scans)
        if len(set(images.values())) < len(scans):
            raise ConfigError(
                "expected scans with different names, which become the names of their images; found some twice."
            )
        return images

    def _claim_image_files(self, out: Path, scans: tuple[Path, ...]) -> None:
        image_outputs.require_npz(out)
        page = image_outputs.choose_report_file(self.report, out, self.report_frc)
        tiff = image_outputs.list_tiff_files(out, self.tiff)
        self.claim_files("--out", out, out.with_suffix(".png"), *tiff, inputs=scans)
        self.claim_files("--report", page, inputs=scans)

    def _reconstruct(self, open_scan: OpenScan, path: Path, out: Path) -> dict[str, Any]:
        from torchptycho.io import write_reconstruction
        from torchptycho.reconstructors.network_reconstruction import reconstruct

        page = image_outputs.choose_report_file(self.report, out, self.report_frc)
        scan, network, config = open_scan(path)
        # Next to the image if its folder exists, so that a bad file leaves nothing behind.
        room = out.parent if out.parent.is_dir() else None
        image = reconstruct(
            network,
            scan,
            config,
            accelerator=self.accelerator,
            devices=self.devices,
            scratch=room,
            refine_epochs=self.refine,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        write_reconstruction(image, out)
        from torchptycho.visualization.plot import plot_reconstruction

        tiff = image_outputs.write_tiff_files(image, out, self.tiff)
        picture = plot_reconstruction(image, out.with_suffix(".png"))
        if page is not None:
            from torchptycho.visualization.report import write_network_report

            with self.show_status(f"writing {page}"):
                write_network_report(image, scan, network, page, halves=self.report_frc, device=self.accelerator)
        report = image_outputs.summarize_image(image, out, picture, page, tiff)
        if not self.json:
            self.console.print(image_outputs.describe_image(report))
        return report


def _import_ahead() -> None:
    for module in ("torchptycho.reconstructors.phase_sync", "torchptycho.visualization.plot"):
        importlib.import_module(module)
