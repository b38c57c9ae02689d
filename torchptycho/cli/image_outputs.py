"""Files that the commands write for an image: NPZ, PNG and report."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchptycho.cli.base import NEXT_TO_RESULT, NextToResult
from torchptycho.core.config.read import TiffDtype
from torchptycho.core.errors import ConfigError

if TYPE_CHECKING:
    from torchptycho.core.reconstruction import Reconstruction

__all__ = [
    "choose_report_file",
    "describe_image",
    "describe_size",
    "join_file_names",
    "list_tiff_files",
    "require_npz",
    "summarize_image",
    "write_tiff_files",
]


def require_npz(out: Path) -> None:
    if out.suffix.lower() != ".npz":
        raise ConfigError(f"--out: expected a new file whose name ends in .npz; found {out}.")
    from torchptycho.io.formats.npz import has_frames

    # Not even with --overwrite: what was measured cannot be computed again.
    if zipfile.is_zipfile(out) and has_frames(out):
        raise ConfigError(
            f"--out: expected a new file; found {out}, which is a scan. Choose another name, or move it away."
        )


def choose_report_file(asked: NextToResult | Path | None, out: Path, frc: bool) -> Path | None:
    if asked is None:
        if frc:
            raise ConfigError("--report-frc: expected --report; found none. Add --report, or omit --report-frc.")
        return None
    page = out.with_suffix(".html") if asked == NEXT_TO_RESULT else Path(asked)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--report: expected a file whose name ends in .html; found {page}.")
    return page


def list_tiff_files(out: Path, dtype: TiffDtype | None) -> tuple[Path, ...]:
    """List the TIFF files next to an image, if any are asked for."""
    from torchptycho.io.tiff_files import name_tiff_files

    return () if dtype is None else name_tiff_files(out.with_suffix(".tif"))


def write_tiff_files(image: Reconstruction, out: Path, dtype: TiffDtype | None) -> tuple[Path, ...]:
    """Write the TIFF files next to an image, if any are asked for."""
    if dtype is None:
        return ()
    from torchptycho.io import write_tiff

    return write_tiff(image, out.with_suffix(".tif"), dtype=dtype)


def join_file_names(*files: Path | str | None) -> str:
    return ", ".join(str(file) for file in files if file is not None)


def summarize_image(
    image: Reconstruction, out: Path, picture: Path, page: Path | None, tiff: tuple[Path, ...] = ()
) -> dict[str, Any]:
    return {
        "out": str(out),
        "picture": str(picture),
        "tiff": [str(file) for file in tiff],
        "report": None if page is None else str(page),
        "shape_px": list(image.object.shape),
        "origin_px": list(image.origin_px),
        "object_pixel_m": image.object_pixel_m,
        "n_frames": image.provenance["frames"],
        "seconds": image.provenance["seconds"],
    } | _summarize_refinement(image)


def describe_size(image: Reconstruction) -> str:
    """Describe the size of an image, of a thick object with its slices."""
    *slices, height, width = image.object.shape
    return f"{''.join(f'{n} slices of ' for n in slices)}{height}x{width} px"


def describe_image(report: dict[str, Any]) -> str:
    """Describe an image in one line: its files, its size, what it was made from."""
    files = join_file_names(report["out"], *report["tiff"], report["picture"], report["report"])
    size = "x".join(map(str, report["shape_px"]))
    return f"{files}: {size} px from {report['n_frames']} frames in {report['seconds']:.1f} s"


def _summarize_refinement(image: Reconstruction) -> dict[str, Any]:
    """Return the last figures of the refinement, if there was one, and what they say against it."""
    if not image.history:
        return {}
    from torchptycho.reconstructors.iterative import summarize_fit

    refinement = image.provenance.get("refinement", image.provenance)
    return summarize_fit(image.history) | {"warnings": refinement.get("warnings", [])}
