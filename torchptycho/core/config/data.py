"""Options of grouping frames and of preparing stores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from torchptycho.core.config.base import Count, Fraction, NonNegative, Positive, validated_dataclass
from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ConfigError

__all__ = ["GroupConfig", "PrepareConfig"]


@validated_dataclass
class GroupConfig:
    """Grouping of frames into groups of gridsize^2 overlapping neighbours."""

    gridsize: Annotated[int, Field(ge=1, le=5)] = 2
    """Groups have gridsize x gridsize frames, whose patches share one object; 1 treats each frame separately."""
    n_groups: Count | None = None
    """Number of groups (frames, with gridsize 1); None makes one per frame."""
    n_subsample: Count | None = None
    """Number of frames to draw at random before grouping; None keeps all."""
    subsample_seed: int = 0
    """Seed of the random subsample."""
    neighbor_count: Count | None = None
    """K: number of nearest neighbours of a seed frame to choose from, itself excluded; None: 7, or C + 3 if larger."""
    sequential: bool = False
    """Use the first frames in order as seed frames instead of drawing them."""
    oversample: bool = False
    """Allow more groups than frames, as different combinations of the neighbours."""
    min_distance_px: NonNegative = 0.0
    """Smallest distance of a neighbour from the seed frame."""
    max_distance_px: Positive | None = None
    """Largest distance of a neighbour from the seed frame."""
    quadrants: bool = False
    """Distribute the neighbours evenly over the four quadrants around the seed frame."""
    bounds: tuple[Fraction, Fraction, Fraction, Fraction] = (0.0, 1.0, 0.0, 1.0)
    """Part of the scan with seed frames: y start, y stop, x start, x stop as fractions of its extent."""
    group_seed: int = 0
    """Seed of the random choice of seed frames and neighbours."""
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


@validated_dataclass
class PrepareConfig(ReadConfig):
    """Preparation of a store: reading of scans, validation data, bootstrapping of the probe."""

    nphotons: Positive | None = None
    """Photons per frame of amplitude data; None uses the file's metadata, else 1e9."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the frames that is held out for validation."""
    val_by: Literal["frames", "region", "scans"] = "frames"
    """Validation data: single frames of each scan, which training frames overlap; a region of each scan, with a gap to
    the training frames; or whole scans (those of --val-scans, or else randomly drawn ones)."""
    val_region: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """Region of each scan to hold out: y start, y stop, x start, x stop as fractions of its extent, instead of
    `val_fraction`; None takes the part beyond a straight line in a random direction."""
    val_gap_px: NonNegative | None = None
    """Gap between a held-out region and the training frames; frames in it are not used. None takes the width of the
    probe (95 % of its power)."""
    split_seed: int = 0
    """Seed of the random choice of held-out frames, regions or scans."""
    bootstrap_probe: Annotated[int, Field(ge=0)] = 0
    """Epochs of refinement to improve the probe before it is used; 0 uses it unchanged. The refined image is saved next
    to the store."""
    bootstrap_positions: bool = False
    """Use the positions from this refinement too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("val_region", "val_gap_px"):
            if getattr(self, name) is not None and self.val_by != "region":
                raise ConfigError(
                    f"{name}: expected val_by region; found val_by {self.val_by}. Set val_by, or omit {name}."
                )
        if self.val_region is not None:
            y0, y1, x0, x1 = self.val_region
            if not (y0 < y1 and x0 < x1):
                raise ConfigError(f"val_region: expected start < stop in (y0, y1, x0, x1); found {self.val_region}.")
