"""Frozen, strict configuration: one dataclass per step, validated when it is built.

Python, a YAML or TOML file and the command line all construct these same objects. Field names are unique over all
sections, so that the command line can offer them without a prefix.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from torchptycho.core.config.base import Count, Fraction, NonNegative, Positive, one_line, strict
from torchptycho.core.config.experiment import ExperimentConfig, LogConfig
from torchptycho.core.config.read import MappingConfig, ReadConfig, frame_slice, reading_of
from torchptycho.core.errors import ConfigError

__all__ = [
    "SUPPORTED_N_PX",
    "ExperimentConfig",
    "GroupConfig",
    "LogConfig",
    "LossConfig",
    "MappingConfig",
    "ModelConfig",
    "PrepareConfig",
    "ReadConfig",
    "ReconstructConfig",
    "RefineConfig",
    "RunConfig",
    "SimulateConfig",
    "TrainConfig",
    "frame_slice",
    "from_dict",
    "load_config",
    "reading_of",
    "save_config",
    "to_dict",
]

SUPPORTED_N_PX = (32, 64, 128, 256)
"""Frame sizes for which networks exist."""

T = TypeVar("T")


@strict
class SimulateConfig:
    """A simulated experiment: object, probe, scan positions, dose."""

    n_px: Annotated[int, Field(ge=8, multiple_of=2)] = 64
    """Frame size N in pixels."""
    object_kind: Literal["dead_leaves", "lines", "gaussian_field", "siemens_star", "natural"] = "dead_leaves"
    """What is looked at."""
    object_px: Count = 256
    """Edge of the square object in object pixels."""
    amplitude_min: Fraction = 0.5
    """Lowest transmission |O|; the highest is 1."""
    phase_range_rad: NonNegative = 1.6
    """Difference between the largest and the smallest phase of the object."""
    probe_kind: Literal["disk", "gaussian", "zone_plate"] = "zone_plate"
    """Shape of the beam."""
    probe_diameter_px: Positive | None = None
    """Width of the beam (disk: diameter; gaussian, zone plate: full width at half maximum); None takes 0.4 N."""
    probe_defocus_waves: float = 2.0
    """Zone plate only: defocus phase at the edge of the aperture, in waves."""
    probe_modes: Count = 1
    """Number of incoherent modes."""
    probe_file: str | None = None
    """NPZ whose `probeGuess` (or `probe`) replaces the simulated beam."""
    position_kind: Literal["raster", "fermat", "random"] = "fermat"
    """How the beam is moved over the object."""
    n_frames: Count = 1000
    """Number of frames (raster: at least this many)."""
    position_jitter_px: NonNegative = 1.0
    """Uniform random displacement of each raster position, each way."""
    photons_per_frame: Positive = 1e6
    """Expected photons in a frame through a fully transparent object."""
    noise: bool = True
    """Draw Poisson counts; without it the frames are the expected counts in float32."""
    simulation_seed: int = 0
    """Seed of everything that is drawn."""


@strict
class GroupConfig:
    """How frames are gathered into groups of gridsize^2 overlapping neighbours (sample, then group)."""

    gridsize: Annotated[int, Field(ge=1, le=5)] = 2
    """Groups hold gridsize x gridsize frames, whose patches must agree on one object; 1 asks for no agreement."""
    n_groups: Count | None = None
    """Groups wanted (frames, with gridsize 1); None takes one per frame."""
    n_subsample: Count | None = None
    """Frames kept before grouping, drawn at random; None keeps all."""
    subsample_seed: int = 0
    """Seed of that draw."""
    neighbor_count: Count | None = None
    """K: nearest neighbours considered for each seed, itself excluded; None takes 7, or C + 3 when that is more."""
    sequential: bool = False
    """Take the first frames in order as seeds instead of drawing them."""
    oversample: bool = False
    """Allow more groups than frames, as different combinations of the neighbours."""
    min_distance_px: NonNegative = 0.0
    """Neighbours closer to the seed than this are not used."""
    max_distance_px: Positive | None = None
    """Neighbours farther from the seed than this are not used."""
    quadrants: bool = False
    """Spread the neighbours evenly over the four quadrants around the seed."""
    bounds: tuple[Fraction, Fraction, Fraction, Fraction] = (0.0, 1.0, 0.0, 1.0)
    """Part of the scan that seeds may come from: y start, y stop, x start, x stop as fractions of its extent."""
    group_seed: int = 0
    """Seed of the choice of seeds and neighbours."""
    sampler: Literal["fast", "oracle"] = "fast"
    """fast draws all groups at once; oracle repeats the draws of the original PtychoPINN, without the constraints."""

    def __post_init__(self) -> None:
        y0, y1, x0, x1 = self.bounds
        if not (y0 < y1 and x0 < x1):
            raise ConfigError(f"bounds: expected start < stop in (y0, y1, x0, x1); found {self.bounds}.")
        if self.max_distance_px is not None and self.max_distance_px <= self.min_distance_px:
            raise ConfigError(
                f"max_distance_px: expected more than min_distance_px = {self.min_distance_px}; "
                f"found {self.max_distance_px}."
            )


@strict
class PrepareConfig(ReadConfig):
    """How scans become a store: how they are read, and what is done with them then."""

    nphotons: Positive | None = None
    """Photons per frame of amplitude data; None follows the file's metadata, then 1e9."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Part of the frames that is held out for validation."""
    val_by: Literal["frames", "region", "scans"] = "frames"
    """What is held out: single frames of each scan, which their neighbours overlap; a region of each scan, with nothing
    near it trained on; or whole scans (those of --val-scans, or else drawn ones)."""
    val_region: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """Region of each scan to hold out: y start, y stop, x start, x stop as fractions of its extent, in place of
    `val_fraction`; None takes what lies beyond a straight line in a random direction."""
    val_gap_px: NonNegative | None = None
    """How far from a held-out region training begins; frames between are not used. None takes the width of the beam
    (95 % of its power)."""
    split_seed: int = 0
    """Seed of the choice of held-out frames, regions or scans."""
    bootstrap_probe: Annotated[int, Field(ge=0)] = 0
    """Epochs of refinement that make the probe good before anything else is done with it; 0 takes it as it is.
    The image found on the way is kept beside the store."""
    bootstrap_positions: bool = False
    """Take over the positions that this refinement found, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("val_region", "val_gap_px"):
            if getattr(self, name) is not None and self.val_by != "region":
                raise ConfigError(f"{name}: belongs to val_by region; found val_by {self.val_by}.")
        if self.val_region is not None:
            y0, y1, x0, x1 = self.val_region
            if not (y0 < y1 and x0 < x1):
                raise ConfigError(f"val_region: expected start < stop in (y0, y1, x0, x1); found {self.val_region}.")


@strict
class ModelConfig:
    """The generator and the model of the experiment around it."""

    generator: str = "pie_unet"
    """Registered network: `pie_unet`, `resunet`, `cnn`, or one of your own."""
    n_filters_scale: Annotated[int, Field(ge=1, le=16)] = 2
    """Width of the network (cnn: multiplies all filter counts; pie_unet: 2 is 32 to 96 channels; resunet: to 128)."""
    start_projections: Annotated[int, Field(ge=0)] = 12
    """pie_unet: steps of classical projection of each group before the network, at half the resolution."""
    finish_projections: Annotated[int, Field(ge=0)] = 5
    """pie_unet: such steps after the network, at full resolution, when it is not being trained."""
    amplitude_activation: Literal["sigmoid", "swish", "softplus", "relu"] = "sigmoid"
    """cnn only: what bounds its amplitude."""
    probe_big: bool = True
    """cnn: predict the border of the patch too; real-space losses: compare it too, not just the central half."""
    merge_weight: Literal["probe", "central"] = "probe"
    """How patches of a group are averaged before diffraction: by |P|^2, or evenly over the central half."""
    probe_trainable: bool = False
    """Let training improve the probe."""


@strict
class LossConfig:
    """Weights of the terms of the loss."""

    nll_weight: NonNegative = 1.0
    """Poisson likelihood of the measured counts: half the deviance over the mean count, 0 for a perfect fit."""
    mae_weight: NonNegative = 0.0
    """Mean absolute error of the diffraction amplitudes, both scaled as the network's input is."""
    tv_weight: NonNegative = 0.0
    """Total variation of the object patches."""
    realspace_weight: NonNegative = 0.0
    """Mean squared error of the patches against `truth` (simulated scans)."""
    realspace_mae_weight: NonNegative = 0.0
    """Mean absolute error of the patches against `truth` (simulated scans)."""


@strict
class TrainConfig:
    """The optimisation."""

    steps: Count = 200
    """Optimiser steps; epochs follow from the size of the scan."""
    epochs: Count | None = None
    """Passes over the scan; overrides `steps`."""
    batch_size: Count = 64
    """Frames per optimiser step, in batch_size / gridsize^2 groups, at least 1."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Update rule."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    learning_rate_factor: Positive = 1.0
    """What the learning rate is multiplied by; below 1 where a trained network goes on (`train --from`)."""
    freeze_encoder: bool = False
    """Leave the encoder of the network as it is, and train the rest."""
    accumulate: Count = 1
    """Batches whose gradients are averaged for one optimiser step."""
    probe_learning_rate: Positive = 1e-3
    """Learning rate of a trainable probe, relative to its root-mean-square value."""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """How the learning rate falls."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the learning rate rises from zero."""
    gradient_clip: NonNegative = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    seed: int = 0
    """Seed of the weights and of the order of the frames."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Threads that gather batches ahead of their use; 0 gathers in the training thread."""
    accelerator: str = "auto"
    """Where to compute: auto, cpu, gpu."""
    devices: Count = 1
    """Number of devices; each takes batches of `batch_size`, and their gradients are averaged."""
    nodes: Count = 1
    """Number of machines with as many devices each, started by torchrun or srun."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the network; the physics is always float32."""
    compile: bool = False
    """Compile the network with torch.compile; where no compiler is found it runs as it is, and a warning says so."""
    early_stop: Count | None = None
    """Validations without a better loss after which training ends; None goes on to the last step."""
    on_flat: Literal["fail", "warn"] = "fail"
    """What to do when the network predicts the same featureless patch for every frame, and the frames do differ."""


@strict
class ReconstructConfig:
    """Prediction and stitching."""

    stitch_weight: Literal["probe", "central"] = "probe"
    """How overlapping patches are averaged: by |P|^2, or evenly over the central half."""
    agree_phases: bool = True
    """Turn each group's patches by the phase with which they agree with their neighbours, before they are averaged."""
    input_scale: Literal["training", "scan"] = "training"
    """Scale the network's input as in training, or anew from this scan (when its dose differs)."""
    training_scan: Annotated[int, Field(ge=0)] = 0
    """Which training scan's probe and scale to use, when there were several."""
    predict_batch_size: Count | Literal["auto"] = "auto"
    """Frames per forward pass; a CPU runs one on each core at once, 8 at most, and needs the memory of all of them, but
    for OMP_NUM_THREADS=1. auto: what a CPU is fastest with, and what a GPU has memory for."""
    predict_precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the network; the physics is always float32."""
    predict_compile: bool = False
    """Compile the network with torch.compile, which takes a minute at first; where it fails it runs as it is."""
    predict_passes: Count = 1
    """Times that each frame is predicted, each time in a group with other neighbours; the image averages them."""
    absolute_scale: bool = False
    """Scale the object so that object and a constant background fit the counts of the whole scan best."""


@strict
class RefineConfig:
    """How an image is fitted to the counts: object, and if wanted probe, positions and background."""

    method: Literal["rpie", "lsqml", "gradient"] = "rpie"
    """rpie: projections in mini-batches; lsqml: with step lengths by least squares; gradient: automatic derivatives."""
    epochs: Count = 100
    """Passes over the frames, at most."""
    batch_size: Count | None = None
    """Frames computed at once; also the frames of an update, before polishing. None takes a 25th of the scan's frames,
    8 to 64."""
    polish: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Last part of the epochs, in which updates gather more and more frames, so that their noise averages out; with the
    method gradient, Adam's rate falls to a tenth instead."""
    likelihood: Literal["poisson", "amplitude"] = "poisson"
    """Noise of the counts: Poisson's, or the same at every pixel of the amplitude."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.1
    """How much weakly lit pixels are held back, 0 not at all, 1 as the gradient does (rpie, lsqml)."""
    step: Annotated[float, Field(gt=0, lt=2)] = 1.0
    """Length of the updates (rpie), or what the best length is multiplied by (lsqml)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Part of the last movement that is kept up (rpie, lsqml)."""
    probe_update: bool = True
    """Refine the probe as well."""
    probe_start_epoch: Annotated[int, Field(ge=0)] = 0
    """Epochs before the probe moves: an object that was fitted to a wrong probe is the worse beginning."""
    n_modes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Incoherent modes of the probe; None takes the scan's."""
    background: bool = False
    """Fit counts that do not come from the sample, the same in every frame."""
    position_update: Literal["none", "affine", "frames", "both"] = "none"
    """Correct the positions: all by one linear map (scale, rotation, shear), each frame by itself, or both."""
    position_start_epoch: Annotated[int, Field(ge=0)] = 5
    """Epochs before positions move."""
    position_step_px: Positive = 0.5
    """Longest step of a frame in one epoch; it becomes shorter towards the end."""
    position_limit_px: Annotated[float, Field(gt=0, le=1024)] = 8.0
    """Farthest that a frame may move from where it was said to be, along each axis."""
    smoothness_weight: NonNegative = 0.0
    """Weight of the squared differences between neighbouring object pixels."""
    tv_weight: NonNegative = 0.0
    """Weight of the total variation of the object."""
    optimizer: Literal["adam", "lbfgs"] = "adam"
    """Of the method gradient."""
    learning_rate: Positive = 0.05
    """Of Adam, in the method gradient; the object's unit is 1, the probe's its own size."""
    patience: Count | None = 20
    """Epochs without a better fit after which polishing begins, and then the end; None goes on to the last epoch."""
    min_improvement: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    """What counts as better, relative."""
    refine_seed: int = 0
    """Seed of the order of the frames."""


@strict
class RunConfig:
    """Everything that a run from scan to image can be told."""

    prepare: PrepareConfig = Field(default_factory=PrepareConfig)
    group: GroupConfig = Field(default_factory=GroupConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    experiment: ExperimentConfig = Field(default_factory=ExperimentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    reconstruct: ReconstructConfig = Field(default_factory=ReconstructConfig)
    refine: RefineConfig = Field(default_factory=RefineConfig)

    @property
    def reading(self) -> ReadConfig:
        """The options of `prepare` that hold wherever a scan is opened."""
        return reading_of(self.prepare)


_SECTIONS: dict[str, type] = {
    "prepare": PrepareConfig,
    "group": GroupConfig,
    "model": ModelConfig,
    "experiment": ExperimentConfig,
    "loss": LossConfig,
    "train": TrainConfig,
    "log": LogConfig,
    "reconstruct": ReconstructConfig,
    "refine": RefineConfig,
}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain str/int/float/bool/None/list/dict, for checkpoints and files."""
    plain = TypeAdapter(type(config)).dump_python(config, mode="json")
    assert isinstance(plain, dict)
    return plain


def from_dict(kind: type[T], values: dict[str, Any], *, source: str = "configuration") -> T:
    """Build `kind` from plain data, strictly.

    Raises:
        ConfigError: a key is unknown (the nearest valid one is named) or a value is out of range.
    """
    _refuse_unknown_keys(kind, values, source, "")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise one_line(error, source) from None


def _refuse_unknown_keys(kind: Any, values: Any, source: str, prefix: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: '{prefix.rstrip('.') or 'top level'}': expected a table; found {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean '{prefix}{near[0]}'?" if near else f" Valid keys: {', '.join(sorted(fields))}."
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'.{hint}")
        if kind is RunConfig:
            _refuse_unknown_keys(_SECTIONS[key], value, source, f"{prefix}{key}.")
        elif key == "mapping" and value is not None:
            _refuse_unknown_keys(MappingConfig, value, source, f"{prefix}{key}.")


def load_config(path: str | Path) -> RunConfig:
    """Read a YAML (.yaml, .yml) or TOML (.toml) file with the sections of `RunConfig`.

    Raises:
        ConfigError: unreadable, not a table, an unknown key or a bad value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected YAML or TOML; {reason}.") from None
    values = {} if values is None else values
    _refuse_unknown_keys(RunConfig, values, str(path), "")
    return from_dict(RunConfig, values, source=str(path))


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the fully resolved configuration as YAML that `load_config` reads back."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
