"""Crops for training the prior: of refined objects, and of other objects with the noise of refined ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.utils.data import IterableDataset

from torchptycho.core.errors import ConfigError
from torchptycho.data.simulation.random_objects import draw_random_object
from torchptycho.training.pretraining.pairs import Pair, PairStore

__all__ = ["VALIDATION_EVERY", "CropBatch", "CropDataset", "cut_validation_crops"]

VALIDATION_EVERY = 25
"""Pairs whose number is a multiple of this are never trained on."""

# Part of the crops that are new objects with noise transplanted from a pair, and how far its dose is changed.
_TRANSPLANT_FRACTION = 0.5
_DOSE_FACTOR_DECADES = 1.2
# Objects that noise is transplanted to: drawn one per batch, used for as many batches.
_OBJECT_POOL, _OBJECT_PX = 192, 144
# Noise relative to the mean amplitude with which a pair is worth training on, and errors that are noise and no more.
_USEFUL_SIGMA = (0.0025, 1.5)
_MAX_NOISE_RATIO = 4.0
# Pairs that are new on disk are read each time that this number of batches was drawn.
_REFRESH_BATCHES = 50


class CropBatch(NamedTuple):
    """Crops [B, H, W]: object with noise, the same without, and sigma."""

    noisy: Complex[Tensor, "b h w"]
    truth: Complex[Tensor, "b h w"]
    sigma: Float[Tensor, "b h w"]


class CropDataset(IterableDataset[CropBatch]):
    """Endless batches that depend on the seed, the number of the batch, and the pairs on disk alone."""

    def __init__(self, store: PairStore, seed: int, *, batch_size: int = 8, crop_px: int = 80, start: int = 0) -> None:
        super().__init__()
        self.store, self.seed, self.batch_size, self.crop_px, self.start = store, seed, batch_size, crop_px, start
        self._pairs: dict[int, Pair] = {}
        self._noise: list[int] = []
        self._known: set[int] = set()
        self._objects: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[CropBatch]:
        batch = self.start
        while True:
            if not self._pairs or batch % _REFRESH_BATCHES == 0:
                self._read_new_pairs()
            yield self._draw(batch)
            batch += 1

    def _read_new_pairs(self) -> None:
        for number in self.store.numbers():
            if number in self._known or number % VALIDATION_EVERY == 0:
                continue
            self._known.add(number)
            pair = self.store.load(number)
            level, ratio = _measure_noise(pair)
            if not _USEFUL_SIGMA[0] < level < _USEFUL_SIGMA[1]:
                continue
            self._pairs[number] = pair
            # What a prior has left depends on the object and cannot be given to another.
            if pair.drawn["wrong"] == "nothing" and ratio < _MAX_NOISE_RATIO and not pair.drawn.get("with_prior"):
                self._noise.append(number)

    def _draw(self, batch: int) -> CropBatch:
        rng = np.random.default_rng([self.seed, 1, batch])
        numbers = list(self._pairs)
        if not numbers:
            raise ConfigError(
                f"pairs: none of the {len(self._known)} simulated scans in {self.store.folder} has noise that a prior "
                "could remove. Make more of them."
            )
        crops: list[tuple[np.ndarray, ...]] = []
        for _ in range(self.batch_size):
            if self._noise and rng.random() < _TRANSPLANT_FRACTION:
                pair = self._pairs[self._noise[rng.integers(len(self._noise))]]
                crop = self._transplant(_cut(pair, self.crop_px, rng), batch, rng)
            else:
                crop = _cut(self._pairs[numbers[rng.integers(len(numbers))]], self.crop_px, rng)
            crops.append(_augment(crop, rng))
        return _stack(crops)

    def _transplant(self, crop: tuple[np.ndarray, ...], batch: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        noisy, truth, sigma = crop
        # Noise has no memory of the phase and the scale of the object that it came with.
        factor = 10 ** rng.uniform(-_DOSE_FACTOR_DECADES / 2, _DOSE_FACTOR_DECADES / 2)
        noise = (noisy - truth) * (factor * np.exp(2j * np.pi * rng.random()))
        number = int(rng.integers(max(0, batch - _OBJECT_POOL), batch + 1))
        if number not in self._objects:
            object_rng = np.random.default_rng([self.seed, 2, number])
            self._objects[number] = draw_random_object(_OBJECT_PX, object_rng)[0]
        for old in [n for n in self._objects if n < batch - _OBJECT_POOL]:
            del self._objects[old]
        top, left = rng.integers(0, _OBJECT_PX - self.crop_px + 1, 2)
        object = self._objects[number][top : top + self.crop_px, left : left + self.crop_px]
        return object + noise, object, sigma * factor


def cut_validation_crops(store: PairStore, *, crop_px: int = 80, limit: int = 64) -> CropBatch | None:
    """Cut the middle of each pair that is never trained on; None when there is none yet."""
    crops: list[tuple[np.ndarray, ...]] = []
    for number in store.numbers():
        if number % VALIDATION_EVERY or len(crops) == limit:
            continue
        pair = store.load(number)
        if _USEFUL_SIGMA[0] < _measure_noise(pair)[0] < _USEFUL_SIGMA[1]:
            crops.append(_cut(pair, crop_px, None))
    return _stack(crops) if crops else None


def _measure_noise(pair: Pair) -> tuple[float, float]:
    """Return sigma relative to the mean amplitude, and the error of the refined object relative to sigma."""
    covered = pair.sigma < 2 * pair.sigma.min()
    amplitude = float(np.sqrt(np.mean(np.abs(pair.truth[covered]) ** 2)))
    error = float(np.sqrt(np.mean(np.abs((pair.refined - pair.truth)[covered] / pair.sigma[covered]) ** 2)))
    return float(np.median(pair.sigma[covered])) / max(amplitude, 1e-9), error


def _cut(pair: Pair, crop_px: int, rng: np.random.Generator | None) -> tuple[np.ndarray, ...]:
    """Cut a crop out of the covered part, at random or, without a generator, out of its middle."""
    corner = []
    covered = pair.sigma < 3 * pair.sigma.min()
    for axis, extent in enumerate(pair.sigma.shape):
        hit = np.flatnonzero(covered.any(1 - axis))
        # A quarter of the crop may lie outside what is covered well.
        low = int(np.clip(hit[0] - crop_px // 4, 0, extent - crop_px))
        high = int(np.clip(hit[-1] + 1 + crop_px // 4 - crop_px, low, extent - crop_px))
        corner.append((low + high) // 2 if rng is None else int(rng.integers(low, high + 1)))
    window = tuple(slice(start, start + crop_px) for start in corner)
    return pair.refined[window], pair.truth[window], pair.sigma[window]


def _augment(crop: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    noisy, truth, sigma = crop
    factor = np.exp(2j * np.pi * rng.random())
    noisy, truth = noisy * factor, truth * factor
    if rng.random() < 0.5:
        noisy, truth = noisy.conj(), truth.conj()
    if rng.random() < 0.5:
        noisy, truth, sigma = (np.swapaxes(part, 0, 1) for part in (noisy, truth, sigma))
    turns = int(rng.integers(4))
    return tuple(np.rot90(part, turns) for part in (noisy, truth, sigma))


def _stack(crops: list[tuple[np.ndarray, ...]]) -> CropBatch:
    noisy, truth, sigma = (np.stack(parts) for parts in zip(*crops, strict=True))
    return CropBatch(
        torch.from_numpy(noisy.astype(np.complex64)),
        torch.from_numpy(truth.astype(np.complex64)),
        torch.from_numpy(sigma.astype(np.float32)),
    )
