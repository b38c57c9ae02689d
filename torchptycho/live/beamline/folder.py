"""A folder that fills with files, one for each frame."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np

from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.live.beamline.detector import DetectorEvent, DetectorFrame, DetectorHeader

__all__ = ["FrameFolder", "is_folder_pattern"]

_SUFFIXES = (".tif", ".tiff", ".npy", ".h5", ".hdf5", ".nxs")
_NUMBER = re.compile(r"(\d+)\D*$")
_SCAN_INTERVAL_S = 0.1
# A file is read when its size has not changed for this long; one that cannot be read is tried again for this long.
_QUIET_S, _ERROR_TIMEOUT_S = 0.3, 10.0
# A file with a smaller number than the first one that is found may appear within this time.
_FIRST_WAIT_S = 1.0
# A number that is missing while later files exist is waited for as long.
_MISSING_WAIT_S = 10.0


def is_folder_pattern(text: str) -> bool:
    """Check whether a text names files by a pattern, such as raw/scan_*.tif."""
    return "://" not in text and "*" in text


class FrameFolder:
    """Frames in files of one image each: TIFF, NPY, or HDF5.

    The number of a frame is the last number in the name of its file; the smallest one of the folder is frame 0. A file
    that is still being written is waited for.

    Arguments:
        pattern: as folder/name_*.tif; for HDF5 with the dataset, as folder/name_*.h5:/entry/data.

    Raises:
        ConfigError: the pattern names no such files.
    """

    keeps_frames = True
    idle_s: float | None = 30.0

    def __init__(self, pattern: str) -> None:
        self.name = pattern
        text, colon, key = pattern.partition(":/")
        self._folder, self._glob = Path(text).parent, Path(text).name
        self._key = "/" + key if colon else None
        suffix = Path(text).suffix.lower()
        if suffix not in _SUFFIXES or "*" in str(self._folder):
            raise ConfigError(
                f"{pattern}: expected files of one frame each, such as raw/scan_*.tif, with an ending of "
                f"{', '.join(_SUFFIXES)}; found another pattern."
            )
        if (suffix in (".h5", ".hdf5", ".nxs")) != (self._key is not None):
            raise ConfigError(f"{pattern}: expected the dataset of HDF5 files, such as raw/scan_*.h5:/entry/data.")
        self._begun = False
        self._sizes: dict[Path, tuple[int, float]] = {}
        self._first: int | None = None
        self._next = 0
        self._scanned_at_s = float("-inf")
        self._files: dict[int, Path] = {}
        self._found_at_s: float | None = None
        self._missing_since_s: float | None = None
        self._failed_since_s: float | None = None
        self._wait_reason: str | None = None

    def read(self, at_most: int) -> list[DetectorEvent]:
        """Return the next frames in the order of their numbers; wait at most 0.1 s.

        Raises:
            ScanError: a file cannot be read for 10 s, or two files have the same number.
        """
        self._scan_folder()
        events: list[DetectorEvent] = []
        if not self._begun and self._files:
            self._begun = True
            events.append(DetectorHeader(series=str(self._folder.absolute() / self._glob)))
        n_frames = 0
        while n_frames < max(1, at_most):
            frame = self._read_next()
            if frame is None:
                break
            events.append(frame)
            n_frames += 1
        if not events:
            time.sleep(_SCAN_INTERVAL_S / 2)
        return events

    def explain_wait(self) -> str | None:
        """Explain what is waited for."""
        if not self._files and not self._begun:
            return f"there is no file {self.name} yet"
        return self._wait_reason

    def close(self) -> None:
        """Do nothing: each file is open only while it is read."""

    def _scan_folder(self) -> None:
        now_s = time.monotonic()
        if now_s < self._scanned_at_s + _SCAN_INTERVAL_S:
            return
        self._scanned_at_s = now_s
        for path in self._folder.glob(self._glob):
            found = _NUMBER.search(path.stem)
            number = int(found.group(1)) if found else -1
            if number < 0:
                raise self._make_error(
                    path, "a number in its name", "none", "Number the files in the order of the scan."
                )
            known = self._files.get(number)
            if known is not None and known != path:
                raise self._make_error(
                    path, "one file for each number", f"{known.name} with the same one", "Remove one."
                )
            if self._first is not None and number < self._first:
                raise self._make_error(
                    path,
                    f"no number below {self._first}, which is frame 0",
                    f"{number}, later than that",
                    "Watch the folder again with another --out: all files are there now.",
                )
            if known is None and (self._first is None or number >= self._first + self._next):
                self._files[number] = path
                self._found_at_s = self._found_at_s or now_s

    def _read_next(self) -> DetectorFrame | None:
        if not self._files:
            return None
        lowest = min(self._files)
        now_s = time.monotonic()
        if self._first is None:
            if now_s < (self._found_at_s or now_s) + _FIRST_WAIT_S:
                return None
            self._first = lowest
        number = self._first + self._next
        if lowest > number:
            # It may be written after the next one.
            self._missing_since_s = self._missing_since_s or now_s
            self._wait_reason = f"file {number} is missing while {lowest} is there"
            if now_s < self._missing_since_s + _MISSING_WAIT_S:
                return None
            number = lowest
        path = self._files[number]
        image = self._read_file(path, now_s) if self._is_complete(path, now_s) else None
        if image is None:
            return None
        self._missing_since_s = self._failed_since_s = self._wait_reason = None
        del self._files[number]
        self._sizes.pop(path, None)
        self._next = number - self._first + 1
        return DetectorFrame(number=self._next - 1, image=image)

    def _is_complete(self, path: Path, now_s: float) -> bool:
        try:
            size, changed_s = path.stat().st_size, path.stat().st_mtime
        except OSError:
            return False
        # A file that was last changed long ago is complete, whenever it was found.
        if time.time() - changed_s > 10 * _QUIET_S and size:
            return True
        known_size, since_s = self._sizes.get(path, (-1, now_s))
        if size != known_size:
            self._sizes[path] = (size, now_s)
            return False
        return size > 0 and now_s >= since_s + _QUIET_S

    def _read_file(self, path: Path, now_s: float) -> np.ndarray | None:
        """Read the image in a file; None for one that may be incomplete."""
        try:
            image = np.squeeze(_load_image(path, self._key))
        except (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, RuntimeError) as error:
            self._failed_since_s = self._failed_since_s or now_s
            self._wait_reason = f"{path} cannot be read so far: {error}"
            if now_s < self._failed_since_s + _ERROR_TIMEOUT_S:
                return None
            raise self._make_error(path, "an image", str(error)[:200], "Remove it, and start again.") from None
        if image.ndim != 2 or image.dtype.kind not in "iuf":
            raise self._make_error(
                path,
                "one image of integers or real numbers",
                f"{image.dtype} {image.shape}",
                "Save one frame in a file.",
            )
        return image.astype(image.dtype.newbyteorder("="), copy=False)

    def _make_error(self, path: Path, expected: str, found: str, remedy: str) -> ScanError:
        return ScanError(path, None, expected=expected, found=found, remedy=remedy)


def _load_image(path: Path, key: str | None) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if suffix in (".tif", ".tiff"):
        import tifffile

        return np.asarray(tifffile.imread(path))
    import h5py
    import hdf5plugin  # noqa: F401

    with h5py.File(path, "r") as file:
        return np.asarray(file[key])
