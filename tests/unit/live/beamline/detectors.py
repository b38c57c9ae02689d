"""The simulated detector of examples/, and frames for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

ROOT = Path(__file__).resolve().parents[4]
SETTINGS = {"photon_energy": 8000.0, "detector_distance": 1.5, "x_pixel_size": 75e-6}


def load_simulated_detector() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulated_detector", ROOT / "examples" / "simulated_detector.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_frames(n: int = 12, shape: tuple[int, int] = (32, 36), dtype: type = np.uint16) -> np.ndarray:
    """Counts as of a detector, with one pixel that holds the code of a gap in every frame."""
    frames = np.random.default_rng(1).poisson(3.0, (n, *shape)).astype(dtype)
    frames[:, 5, 7] = np.iinfo(dtype).max
    return frames


def make_bad_pixels(shape: tuple[int, int] = (32, 36)) -> np.ndarray:
    bad = np.zeros(shape, bool)
    bad[3, 4] = bad[20, 30] = True
    return bad
