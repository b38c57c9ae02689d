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


@validated_dataclass
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
    """How far from a held-out region training begins; frames between are not used. None takes the width of the probe
    (95 % of its power)."""
    split_seed: int = 0
    """Seed of the choice of held-out frames, regions or scans."""
    bootstrap_probe: Annotated[int, Field(ge=0)] = 0
    """Epochs of refinement that make the probe good before anything else is done with it; 0 takes it as it is.
    The resulting image is kept next to the store."""
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
