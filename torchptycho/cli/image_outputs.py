"""Files that the commands write for an image: NPZ, PNG and report."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchptycho.cli.base import NEXT_TO_RESULT, NextToResult
from torchptycho.core.errors import ConfigError

if TYPE_CHECKING:
    from torchptycho.core.reconstruction import Reconstruction

__all__ = ["choose_report_file", "join_file_names", "require_npz", "summarize_image"]


def require_npz(out: Path) -> None:
    if out.suffix.lower() != ".npz":
        raise ConfigError(f"--out: expected a new file whose name ends in .npz; found {out}.")
    from torchptycho.io.formats.npz import has_frames

    # Not even with --overwrite: what was measured cannot be computed again.
    if zipfile.is_zipfile(out) and has_frames(out):
        raise ConfigError(f"--out: {out} is a scan. Choose another name, or move it away.")


def choose_report_file(asked: NextToResult | Path | None, out: Path, frc: bool) -> Path | None:
    if asked is None:
        if frc:
            raise ConfigError("--report-frc: expected --report; found none. Add --report, or omit --report-frc.")
        return None
    page = out.with_suffix(".html") if asked == NEXT_TO_RESULT else Path(asked)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--report: expected a file whose name ends in .html; found {page}.")
    return page


def join_file_names(*files: Path | None) -> str:
    return ", ".join(str(file) for file in files if file is not None)


def summarize_image(image: Reconstruction, out: Path, picture: Path, page: Path | None) -> dict[str, Any]:
    return {
        "out": str(out),
        "picture": str(picture),
        "report": None if page is None else str(page),
        "shape_px": list(image.object.shape),
        "origin_px": list(image.origin_px),
        "object_pixel_m": image.object_pixel_m,
        "n_frames": image.provenance["frames"],
        "seconds": image.provenance["seconds"],
    }
