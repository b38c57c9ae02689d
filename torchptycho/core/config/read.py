"""Options of reading a scan file: values that replace or complete the file's, and processing of its frames.

The same options apply wherever a scan is opened: `inspect`, `convert`, `prepare`, `train`, `refine`, `resolution`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field

from torchptycho.core.config.base import Count, Domain, Positive, validated_dataclass
from torchptycho.core.electron_optics import parse_aberrations
from torchptycho.core.errors import ConfigError
from torchptycho.core.geometry import Particle

__all__ = [
    "MappingConfig",
    "MaskSense",
    "OptionalPart",
    "ReadConfig",
    "ScanFormat",
    "TiffDtype",
    "extract_read_config",
    "parse_frame_slice",
]

ScanFormat = Literal["npz", "ptychodus-h5", "ptychodus-npz"]
"""Formats in which a scan can be written."""

TiffDtype = Literal["float32", "uint16"]
"""What the pixels of an image are in a TIFF file."""


MaskSense = Literal["auto", "good", "bad"]
"""What values other than 0 in a detector mask mean."""

OptionalPart = Literal[
    "probe", "object", "patches", "nominal-positions", "mask", "metadata", "scan-index", "energy", "distance",
    "detector-pixel", "basis-vectors", "checksum",
]  # fmt: skip
"""Parts of a file without which a scan can be read."""

FRAMES_PATTERN = r"^-?\d*:-?\d*(:-?\d+)?$"


def parse_frame_slice(text: str | None) -> slice | None:
    """Parse the frames that `ReadConfig.frames` names."""
    if text is None:
        return None
    return slice(*(int(part) if part else None for part in text.split(":")))


@validated_dataclass
class MappingConfig:
    """Locations of the data in a file of an unknown format, each as `/path/in/the/file` or `other_file:/path`.

    The other file is searched next to the scan; `{stem}` in its name stands for the scan's name without its suffix. A
    NumPy file (.npy) or a TIFF file needs no path, in an NPZ file the path is the name of an array, and in a CSV file
    the name of a column or its number from 0. `[k]` at the end selects entry k along the last axis:
    `/entry/positions[1]`.
    """

    frames: str
    """Stack of frames."""
    positions_y: str | None = None
    """Position of each frame along the rows of the object: a list, a grid as of the frames of a raster, or with
    `positions_x` the two axes of the raster. None where `raster_step_px` or `raster_step_m` describes it."""
    positions_x: str | None = None
    """Position of each frame along the columns of the object."""
    frames_axes: Literal["myx", "mxy", "yxm", "xym"] = "myx"
    """Order of the axes of the stack: m counts the frames, y the rows, x the columns."""
    positions_unit: str | None = None
    """Unit of the positions, such as um; px are object pixels. None follows the attribute `units` in HDF5, then
    takes m. The other units below likewise, with a default of their own."""
    probe: str | None = None
    """Complex probe, (N, N) or (P, N, N)."""
    mask: str | None = None
    """Detector mask."""
    mask_good: Literal["auto", "nonzero", "zero"] = "auto"
    """Which of its values are good pixels; auto goes by its name and values, see `mask_sense`."""
    particle: Particle | None = None
    """Whether photons or electrons are diffracted; None takes electrons with a voltage, else photons."""
    energy: str | None = None
    """Energy of the photons, or kinetic energy of the electrons."""
    energy_unit: str | None = None
    """Its unit, by default eV."""
    wavelength: str | None = None
    """Wavelength, in place of the energy."""
    wavelength_unit: str | None = None
    """Its unit, by default m."""
    voltage: str | None = None
    """Acceleration voltage of electrons, in place of the energy."""
    voltage_unit: str | None = None
    """Its unit, by default V."""
    distance: str | None = None
    """Sample to detector."""
    distance_unit: str | None = None
    """Its unit, by default m."""
    detector_pixel: str | None = None
    """Edge of a detector pixel."""
    detector_pixel_unit: str | None = None
    """Its unit, by default m."""

    def __post_init__(self) -> None:
        stated = [name for name in ("energy", "wavelength", "voltage") if getattr(self, name) is not None]
        if len(stated) > 1:
            raise ConfigError(f"mapping: expected one of energy, wavelength, voltage; found {', '.join(stated)}.")
        if self.voltage is not None and self.particle == "photon":
            raise ConfigError("mapping: a voltage is that of electrons; found particle photon. Leave one of them out.")


@validated_dataclass
class ReadConfig:
    """Reading of scan files."""

    domain: Domain | None = None
    """Content of the frames; None follows the file, else its dtype (integers are counts)."""
    probe: str | None = None
    """File whose probe replaces the scan's own."""
    guess_probe: bool = False
    """If the file has no probe, estimate one from the mean pattern, focused on the sample."""
    probe_defocus_m: float = 0.0
    """Distance from the focus to the sample for `guess_probe`, positive if the focus is upstream of the sample."""
    scan: int | None = None
    """Number of the scan to take from a file that holds several (`scan_index`)."""
    entry: str | None = None
    """Entry to take from a CXI or NeXus file that holds several, by its name, like entry_2."""
    energy_index: Annotated[int | None, Field(ge=0)] = None
    """Energy to take, counted from 0, from a stack that holds the scan at several, (E, M, H, W)."""
    frames: Annotated[str | None, Field(pattern=FRAMES_PATTERN)] = None
    """Frames to keep, as start:stop or start:stop:step, like :721 for the first 721; None keeps all."""
    ignore: tuple[OptionalPart, ...] = ()
    """Parts of the file to leave unread, for example because they are damaged. Without `probe`, give another one or
    guess_probe; without `checksum`, values that changed in an NPZ file since it was written go unnoticed."""
    positions: tuple[str, str] | None = None
    """FILE:KEY of the positions y and of x, which replace the file's, such as list.csv:y list.csv:x; in m if nothing
    states their unit."""
    frames_axis: Literal[0, 2] | None = None
    """NPZ files: axis of the stack that counts the frames, 2 in old files (N, N, M); None follows the file."""
    raster_step_px: tuple[Positive, Positive] | None = None
    """Step of a raster scan (y, x) in object pixels, which takes the place of positions."""
    raster_step_m: tuple[Positive, Positive] | None = None
    """The same in metres."""
    raster_shape: tuple[Count, Count] | None = None
    """Rows and columns of this raster; None takes those of a stack (rows, columns, H, W)."""
    raster_rotation_deg: float = 0.0
    """Angle by which its axes are turned, from x towards y."""
    raster_snake: bool = False
    """Every second row was scanned backwards."""
    drop_frames: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Frames to leave out, counted from 0 as in the file. Lists that have no entry for them fit without them."""
    bad_frames: Literal["refuse", "leave-out"] = "refuse"
    """Frames with NaN, with negative values or without any count, and frames that cannot be read or were never written:
    refuse the scan (frames without counts are only reported), or leave these frames out and list them."""
    particle: Particle | None = None
    """Whether photons or electrons are diffracted; None follows the file, else takes photons."""
    energy_eV: Positive | None = None
    """Energy of the photons, or kinetic energy of the electrons (their acceleration voltage); replaces the file's."""
    wavelength_m: Positive | None = None
    """Wavelength, in place of the energy; replaces the file's."""
    convergence_mrad: Positive | None = None
    """Convergence semi-angle of an electron probe. The bright-field disc then calibrates the detector, unless the file
    or `angle_per_pixel_mrad` does, and `guess_probe` makes the probe of a round aperture."""
    angle_per_pixel_mrad: Positive | None = None
    """Angle between neighbouring detector pixels as recorded, in place of distance and detector pixel; replaces the
    file's."""
    aberrations: tuple[str, ...] = ()
    """Aberrations of that probe in metres, by their Krivanek names: C12a=2e-9 C30=1.2e-3. `probe_defocus_m` is C10,
    positive for overfocus."""
    distance_m: Positive | None = None
    """Sample to detector; replaces the file's."""
    detector_pixel_m: Positive | None = None
    """Edge of a detector pixel as recorded, before binning; replaces the file's."""
    object_pixel_m: Positive | None = None
    """Edge of an object pixel of frames as in the file, in place of energy, distance and detector pixel; replaces the
    file's."""
    positions_unit: str | None = None
    """Unit of the positions in the file, such as um, or px for object pixels; replaces what the file says."""
    propagation: Literal["auto", "far", "near"] = "auto"
    """How waves reach the detector: far (diffraction patterns), near (Fresnel images of the sample, for `refine` only);
    auto is what the file says, and far where it says nothing."""
    focus_distance_m: Positive | Literal["estimated", "parallel"] = "estimated"
    """Near field: distance from the focus of a cone beam to the sample, or "parallel"; "estimated" follows the file, or
    else how far the images of neighbouring frames move."""
    swap_xy: bool = False
    """Exchange x and y of the positions, before any flip; `inspect --orientation` determines the orientation."""
    flip_y: bool = False
    """Reverse the sign of y."""
    flip_x: bool = False
    """Reverse the sign of x."""
    positions_rotation_deg: float = 0.0
    """Angle by which to turn the positions after that, from x towards y; `inspect --virtual-images` determines it for
    electrons."""
    translation_sign: Literal[-1, 1] = -1
    """CXI files: -1 reads `translation` as the motion of the sample, as the format defines; 1 as that of the probe."""
    diffraction: str | None = None
    """Ptychodus products: the file with the frames, if it is not next to the product."""
    fftshift: bool = False
    """Frames have the zero frequency in the corner [0, 0]: move it to the centre."""
    beam_center_px: tuple[float, float] | Literal["estimated"] | None = None
    """Pixel (y, x) of the direct beam in a recorded frame, or "estimated" from the mean pattern; None is [H/2, W/2]."""
    crop_px: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    """Edge N of the frames after binning, cropped around the beam centre; pixels beyond the detector are masked. None
    keeps the largest possible frame."""
    binning: Annotated[int, Field(ge=1, le=16)] = 1
    """Sum squares of binning x binning detector pixels; a square with a masked pixel is masked."""
    dark: str | None = None
    """FILE:KEY of counts to subtract from every frame (the mean of a stack); negative results become 0."""
    flat: str | None = None
    """FILE:KEY of the response of each pixel to divide by, 1 for a perfect one; a pixel without response is masked."""
    clip_negative: bool = False
    """Set negative counts, for example from an earlier dark subtraction, to 0."""
    mask: str | None = None
    """FILE:KEY of a detector mask, in addition to those that the file itself names."""
    mask_sense: MaskSense = "auto"
    """What values other than 0 mean in `mask`, or without one in the file's own mask. auto goes by the name: bad for
    pixel_mask, bad_pixels and the like, for bits, and for a mask at a detector in CXI or NeXus; else good. A mask of
    more than half of the pixels, or a tenth of the light, has to be asked for with good or bad."""
    mask_codes: bool = True
    """Mask pixels that hold the same code of a detector in every frame: 2^32 - 1, 65535, -1, NaN and the like."""
    find_bad_pixels: bool = False
    """Read all frames once and mask pixels that are hot or dead, or that reach the largest value of their dtype."""
    mapping: Annotated[MappingConfig | None, tyro.conf.Suppress] = None
    """Locations of the data in a file of an unknown format (in a configuration file only)."""

    def __post_init__(self) -> None:
        if self.probe_defocus_m and not self.guess_probe:
            raise ConfigError(
                "probe_defocus_m: expected guess_probe; found none. Add --guess-probe, or omit probe_defocus_m."
            )
        if self.aberrations and not (self.guess_probe and self.convergence_mrad):
            raise ConfigError(
                "aberrations: expected guess_probe and convergence_mrad, whose probe they shape; found not both. Add "
                "--guess-probe and --convergence-mrad."
            )
        if self.probe_defocus_m and "C10" in parse_aberrations(self.aberrations):
            raise ConfigError("aberrations: expected C10 or probe_defocus_m; found both, which are the same number.")
        if self.angle_per_pixel_mrad is not None and (self.distance_m or self.detector_pixel_m or self.object_pixel_m):
            raise ConfigError(
                "angle_per_pixel_mrad: expected it in place of distance_m, detector_pixel_m and object_pixel_m; found "
                "both. Leave one of them out."
            )
        if self.energy_eV is not None and self.wavelength_m is not None:
            raise ConfigError("wavelength_m: expected an energy or a wavelength; found both. Leave one of them out.")
        if self.beam_center_px is not None and self.beam_center_px != "estimated" and min(self.beam_center_px) < 0:
            raise ConfigError(f"beam_center_px: expected pixels (y, x) of at least 0; found {self.beam_center_px}.")

        if self.object_pixel_m is not None and (self.distance_m is not None or self.detector_pixel_m is not None):
            raise ConfigError(
                "object_pixel_m: expected without distance_m and detector_pixel_m, which it replaces; found both. "
                "Leave --object-pixel-m out, or --distance-m and --detector-pixel-m."
            )
        if self.positions is not None and self.makes_raster:
            raise ConfigError("positions: expected a list or a raster; found both. Leave one of them out.")
        if self.raster_step_px is not None and self.raster_step_m is not None:
            raise ConfigError("raster_step_px, raster_step_m: expected one of them; found both.")
        if not self.makes_raster and (self.raster_shape or self.raster_rotation_deg or self.raster_snake):
            raise ConfigError("raster_shape, raster_rotation_deg, raster_snake: expected with raster_step_px or _m.")

    @property
    def makes_raster(self) -> bool:
        """Whether the positions are those of a raster and not the file's."""
        return self.raster_step_px is not None or self.raster_step_m is not None

    @property
    def replaces_positions(self) -> bool:
        """Whether the positions of the file are not read."""
        return self.makes_raster or self.positions is not None

    @property
    def states_energy(self) -> bool:
        """Whether an option replaces the energy of the file."""
        return self.energy_eV is not None or self.wavelength_m is not None

    @property
    def changes_frames(self) -> bool:
        """Whether the frames of the scan are not those of the file."""
        default = ReadConfig()
        names = (
            "fftshift", "beam_center_px", "crop_px", "binning", "dark", "flat", "clip_negative",
        )  # fmt: skip
        return any(getattr(self, name) != getattr(default, name) for name in names)


def extract_read_config(config: ReadConfig) -> ReadConfig:
    """Extract the reading options from a configuration that has more."""
    own: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(ReadConfig)}
    return ReadConfig(**own)
