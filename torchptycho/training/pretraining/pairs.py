"""Pairs of a refined object and its truth, made on demand and kept on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex64, Float32

from torchptycho.core.config import RefineConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation.random_scans import draw_random_scan
from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.physics.illumination import compute_illumination, compute_noise_level
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.iterative.learned_prior import LearnedPrior

__all__ = ["Pair", "PairStore", "make_pair"]

# Part of the scans whose probe is refined as well, as `refine` does unless asked not to.
_PROBE_UPDATE_FRACTION = 0.3
# Given a prior, the part of the scans that are refined with it, at which strengths, and how many epochs before the end
# one of its steps follows: the last one, or the one before, which is taken less often.
_WITH_PRIOR_FRACTION, _PRIOR_STRENGTHS, _LAST_STEP_FRACTION = 0.65, (0.6, 1.0), 0.7
_MAX_SIGMA = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """What refinement made of a scan, and what was there.

    Arguments:
        refined, truth: [H, W] on the refinement's canvas, with the same global phase; where the true object ends,
            `truth` repeats `refined`.
        sigma: [H, W] photon noise of real and imaginary part, in the object's unit.
        drawn: plain data that says what was simulated.
    """

    refined: Complex64[np.ndarray, "h w"]
    truth: Complex64[np.ndarray, "h w"]
    sigma: Float32[np.ndarray, "h w"]
    drawn: dict[str, Any]


class PairStore:
    """A folder of pairs that depend on a seed and their number alone.

    Arguments:
        folder: is made when it does not exist.
        seed: of all pairs; a folder holds the pairs of one seed.
        probe: modes that every scan is illuminated by; None draws a probe for each.
        prior_weights: of a prior that acts in the refinement of most scans; None refines all without one.
    """

    def __init__(
        self,
        folder: str | Path,
        seed: int,
        probe: Complex64[np.ndarray, "p n n"] | None = None,
        prior_weights: str | Path | None = None,
    ) -> None:
        self.folder, self.seed, self.probe, self.prior_weights = Path(folder), seed, probe, prior_weights
        self.folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        """Count the pairs on disk."""
        return sum(1 for _ in self.folder.glob(f"pair-{self.seed}-*.npz"))

    def path(self, number: int) -> Path:
        return self.folder / f"pair-{self.seed}-{number:06d}.npz"

    def add(self, number: int) -> Path:
        """Simulate and refine the scan of this number and write the pair, unless it is there."""
        path = self.path(number)
        if not path.is_file():
            pair = make_pair(np.random.SeedSequence([self.seed, number]), self.probe, self.prior_weights)
            with replace_atomically(path) as file:
                np.savez(
                    file,
                    refined=_to_halves(pair.refined),
                    truth=_to_halves(pair.truth),
                    sigma=np.minimum(pair.sigma, _MAX_SIGMA).astype(np.float16),
                    drawn=np.array(json.dumps(pair.drawn)),
                )
        return path

    def numbers(self) -> list[int]:
        """List the numbers of the pairs on disk, in order."""
        return sorted(int(path.stem.rsplit("-", 1)[1]) for path in self.folder.glob(f"pair-{self.seed}-*.npz"))

    def load(self, number: int) -> Pair:
        """Read a pair that was added."""
        with np.load(self.path(number), allow_pickle=False) as archive:
            return Pair(
                refined=_from_halves(archive["refined"]),
                truth=_from_halves(archive["truth"]),
                sigma=archive["sigma"].astype(np.float32),
                drawn=json.loads(str(archive["drawn"])),
            )


def make_pair(
    seed: np.random.SeedSequence,
    probe: Complex64[np.ndarray, "p n n"] | None = None,
    prior_weights: str | Path | None = None,
) -> Pair:
    """Simulate the scan of this seed, refine it, and bring its truth onto the same canvas and to the same phase.

    Given a prior, most of the scans are refined with it, and the object is the one that one of its steps finds: part of
    the noise is back, but not all, and some structure is lost. What the prior is trained on is then what it meets.
    """
    scan_seed, refine_seed = seed.spawn(2)
    scan, drawn = draw_random_scan(scan_seed, probe=probe)
    rng = np.random.default_rng(refine_seed)
    config = RefineConfig(
        epochs=int(rng.integers(25, 41)),
        probe_update=bool(rng.random() < _PROBE_UPDATE_FRACTION),
        patience=None,
        regularization="none",
        refine_seed=int(rng.integers(2**20)),
    )
    with_prior = prior_weights is not None and bool(rng.random() < _WITH_PRIOR_FRACTION)
    if with_prior:
        image = _refine_until_step(scan, config, str(prior_weights), rng)
    else:
        image = refine(scan, config=config, device="cpu")
    sigma = _compute_sigma(image)
    return Pair(
        refined=image.object,
        truth=_place_truth(scan, image, sigma),
        sigma=sigma,
        drawn=drawn | {"epochs": config.epochs, "probe_update": config.probe_update, "with_prior": with_prior},
    )


def _refine_until_step(scan: Scan, config: RefineConfig, weights: str, rng: np.random.Generator) -> Reconstruction:
    """Refine with the prior up to an epoch after which it acts once more."""
    config = dataclasses.replace(
        config,
        regularization="learned",
        regularization_strength=float(rng.uniform(*_PRIOR_STRENGTHS)),
        prior_weights=weights,
    )
    before_end = 1 if rng.random() < _LAST_STEP_FRACTION else 1 + LearnedPrior.every_epochs
    images: list[Reconstruction] = []

    def take_image(image: Reconstruction) -> None:
        if image.provenance["epochs"] == config.epochs - before_end:
            images.append(image)

    refine(scan, config=config, device="cpu", on_image=take_image, image_every_epochs=1, judge=False)
    return images[0]


def _compute_sigma(image: Reconstruction) -> Float32[np.ndarray, "h w"]:
    assert image.probe is not None
    assert image.positions_px is not None
    corners_px = image.positions_px - np.array(image.origin_px) - image.probe.shape[-1] // 2
    illumination = compute_illumination(
        torch.from_numpy(image.probe), torch.from_numpy(corners_px), (image.object.shape[0], image.object.shape[1])
    )
    return compute_noise_level(illumination).clamp(max=_MAX_SIGMA).numpy().astype(np.float32)


def _place_truth(scan: Scan, image: Reconstruction, sigma: np.ndarray) -> Complex64[np.ndarray, "h w"]:
    assert scan.truth is not None
    top, left = image.origin_px
    truth = image.object.copy()
    weight = np.zeros(truth.shape)
    rows, columns = (
        slice(max(0, -start), min(extent, edge - start))
        for start, extent, edge in zip((top, left), truth.shape, scan.truth.shape, strict=True)
    )
    truth[rows, columns] = scan.truth[rows.start + top : rows.stop + top, columns.start + left : columns.stop + left]
    weight[rows, columns] = sigma[rows, columns] ** -2.0
    factor = np.sum(weight * image.object * truth.conj())
    truth[rows, columns] *= factor / max(abs(factor), 1e-30)
    return np.asarray(truth, dtype=np.complex64)


def _to_halves(values: Complex64[np.ndarray, "h w"]) -> np.ndarray:
    # Half precision leaves 5e-4 of the value, less than any noise that a prior has a say in.
    return np.asarray(np.clip(np.stack([values.real, values.imag]), -6e4, 6e4), dtype=np.float16)


def _from_halves(parts: np.ndarray) -> np.ndarray:
    wide = parts.astype(np.float32)
    return np.asarray(wide[0] + 1j * wide[1], dtype=np.complex64)
