"""Parts of a scan file: each is read by itself, and a fault names the option that replaces it or leaves it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torchptycho.core.config.read import OptionalPart, ReadConfig
from torchptycho.core.errors import ScanError

__all__ = ["FRAMES_REMEDY", "POSITIONS_REMEDY", "describe_replacement", "name_part", "read_optional"]

T = TypeVar("T")
D = TypeVar("D")

POSITIONS_REMEDY = "Or give others with --positions Y X, or a raster with --raster-step-px or --raster-step-m."
"""What to give where positions cannot be read."""

FRAMES_REMEDY = "Or leave out the frames that cannot be read with --bad-frames leave-out."
"""What to do about frames some of which cannot be read."""

# Options that replace a part; all of them can be left out.
_REPLACED_BY: dict[OptionalPart, str] = {
    "probe": "Or leave it out with --ignore probe, and give another with --probe FILE or --guess-probe.",
    "energy": "Or give it with --energy-eV, or leave it out with --ignore energy.",
    "distance": "Or give it with --distance-m, or leave it out with --ignore distance.",
    "detector-pixel": "Or give it with --detector-pixel-m, or leave it out with --ignore detector-pixel.",
}


@contextmanager
def name_part(part: str, remedy: str = "") -> Iterator[None]:
    """Name the part of the scan that an error inside is about, and what else helps; the innermost name stays.

    Raises:
        ScanError: as inside.
    """
    try:
        yield
    except ScanError as error:
        if error.part is not None:
            raise
        options = {word.strip(".,;") for word in remedy.split() if word.startswith("--")}
        known = not options or options <= {word.strip(".,;:()") for word in error.remedy.split()}
        raise ScanError(
            error.source,
            error.key,
            expected=error.expected,
            found=error.found,
            remedy=error.remedy if known else f"{error.remedy} {remedy}",
            part=part,
        ) from None


def read_optional(part: OptionalPart, config: ReadConfig, read: Callable[[], T], default: D) -> T | D:
    """Read a part without which a scan can be read, unless it is to be ignored: then it is `default`.

    Raises:
        ScanError: it cannot be read; the option that leaves it out is named.
    """
    if part in config.ignore:
        return default
    with name_part(part, describe_replacement(part)):
        return read()


def describe_replacement(part: OptionalPart) -> str:
    """Describe which options replace a part or leave it out."""
    return _REPLACED_BY.get(part, f"Or leave it out with --ignore {part}.")
