"""Writing scans: canonical NPZ, and the products of Ptychodus."""

from __future__ import annotations

from pathlib import Path

from torchptycho.core.config.read import ScanFormat
from torchptycho.core.errors import ConfigError
from torchptycho.core.inputs import as_path
from torchptycho.core.scan import Scan
from torchptycho.io.formats.npz_writer import write_npz

__all__ = ["FORMATS", "choose_format", "list_files", "write_scan"]

FORMATS: dict[ScanFormat, tuple[str, ...]] = {
    "npz": (".npz",),
    "ptychodus-h5": (".h5", ".hdf5"),
    "ptychodus-npz": (".npz",),
}
"""Formats that can be written, and how the names of their files end."""


def choose_format(path: Path, asked: ScanFormat | None = None) -> ScanFormat:
    """Choose the format of a file to write: what is asked for, else by the end of its name.

    Raises:
        ConfigError: the name belongs to none, or to another one.
    """
    ending = path.suffix.lower()
    found = asked or next((name for name, endings in FORMATS.items() if ending in endings), None)
    if found is None or ending not in FORMATS[found]:
        wanted = FORMATS[found] if found else sorted({ending for endings in FORMATS.values() for ending in endings})
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(wanted)}; found '{ending}'.")
    return found


def list_files(path: str | Path, format: ScanFormat | None = None) -> tuple[Path, ...]:
    """List the files that `write_scan` writes.

    Raises:
        ConfigError: the name does not fit the format.
    """
    path = Path(path)
    # The writer reports a folder with its own message.
    if path.is_dir() or choose_format(path, format) == "npz":
        return (path,)
    from torchptycho.io.formats.ptychodus_writer import name_diffraction_file

    return (path, name_diffraction_file(path))


def write_scan(
    scan: Scan | str | Path, path: str | Path, *, format: ScanFormat | None = None, compressed: bool = True
) -> None:
    """Write a scan, streaming its frames; no file appears before it is whole.

    Arguments:
        scan: or its file.
        format: None follows the name: .npz is canonical NPZ, .h5 and .hdf5 a Ptychodus product, whose frames go into a
            separate file next to it, diffraction.h5 for product.h5 and NAME-diffraction.h5 for NAME.h5.
        compressed: without it the file is larger, and its frames can be memory-mapped.

    Raises:
        ConfigError: the name does not fit the format.
        ScanError: the frames fail `iter_checked_chunks`, the metadata is not plain, a product lacks the object pixel or
            required lengths, or the path is not writable.
    """
    # Reading and writing are one package, whose reader imports this module.
    from torchptycho.io.inputs import as_scan

    path = as_path(path, "path")
    scan = as_scan(scan)
    # The writer reports a folder with its own message.
    kind = "npz" if path.is_dir() else choose_format(path, format)
    if kind == "npz":
        write_npz(scan, path, compressed=compressed)
        return
    from torchptycho.io.formats.ptychodus_writer import write_product

    write_product(scan, path, as_npz=kind == "ptychodus-npz", compressed=compressed)
