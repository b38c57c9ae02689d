"""Hypothesis strategies for the nouns of a scan: fields, patches, probes, offsets, positions, scans.

Places and sizes are drawn by hypothesis, which shrinks them; the numbers in an array come from a drawn seed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from torchptycho.core.config import SimulateConfig
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate

seeds = st.integers(min_value=0, max_value=2**32 - 1)
batch_shapes = st.sampled_from([(), (2,), (2, 3)])
"""Batch axes in front of an array."""


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    """Independent normal numbers, without any symmetry."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_asymmetric_probe(
    n_px: int, modes: int = 1, photons: float = 1e4, dtype: torch.dtype = torch.complex128
) -> Tensor:
    """Probe [P, N, N] in sqrt(photons) that no transposition, reversal or conjugation leaves as it is."""
    y, x = torch.meshgrid(*(torch.arange(n_px, dtype=torch.float64) - n_px // 2,) * 2, indexing="ij")
    y, x = y / n_px, x / n_px
    envelope = torch.exp(-(((y - 0.05) / 0.16) ** 2 + ((x + 0.03) / 0.22) ** 2))
    phase = 2 * math.pi * (9 * y**2 + 6 * x**2 + 5 * x * y + 8 * x**3 + 0.5 * y)
    first = torch.polar(envelope, phase)
    probe = torch.stack([first * (1, y * 6, x * 6)[m] / 2**m for m in range(modes)])
    return (probe * math.sqrt(photons / float(probe.abs().square().sum()))).to(dtype)


def coordinates(low: float, high: float) -> st.SearchStrategy[float]:
    """Pixel coordinates: whole ones as often as fractional ones."""
    whole = st.integers(math.ceil(low), math.floor(high)).map(float)
    return whole | st.floats(low, high)


@st.composite
def positions(
    draw: st.DrawFn, count: int, low: float, high: float, whole: bool = False, lead: tuple[int, ...] = ()
) -> Tensor:
    """[*lead, count, 2] places (y, x) in float64."""
    coordinate = st.integers(math.ceil(low), math.floor(high)).map(float) if whole else coordinates(low, high)
    size = math.prod(lead) * count * 2
    values = draw(st.lists(coordinate, min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).reshape(*lead, count, 2)


@st.composite
def offsets(draw: st.DrawFn, groups: int, members: int, max_offset_px: float, whole: bool = False) -> Tensor:
    """[groups, members, 2] offsets of frames from the centre of their group, in 1/256 px.

    Finer fractions give bilinear weights below the floor under which merging takes a weight for nothing.
    """
    steps = 1 if whole else 256
    reach = math.floor(max_offset_px * steps)
    size = groups * members * 2
    values = draw(st.lists(st.integers(-reach, reach), min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).reshape(groups, members, 2) / steps


@dataclasses.dataclass(frozen=True)
class PatchCase:
    """A field [*lead, h, w], K patches [*lead, k, n, n], and where they are, inside the field and out of it."""

    field: Tensor
    patches: Tensor
    corner_px: Tensor

    @property
    def n_px(self) -> int:
        return int(self.patches.shape[-1])

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.field.shape[-2]), int(self.field.shape[-1]))


@st.composite
def patch_cases(draw: st.DrawFn, dtype: torch.dtype = torch.complex128, whole: bool = False) -> PatchCase:
    lead, seed = draw(batch_shapes), draw(seeds)
    height, width = draw(st.integers(3, 14)), draw(st.integers(3, 14))
    n_px, count = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    reach = max(height, width) + 3
    corner_px = draw(positions(count, -n_px - 3, reach, whole, lead))
    field = normal((*lead, height, width), seed, dtype)
    return PatchCase(field, normal((*lead, count, n_px, n_px), seed + 1, dtype), corner_px)


@st.composite
def probes(draw: st.DrawFn, n_px: int, max_modes: int = 3) -> Tensor:
    """[P, N, N] probes of any number of photons from 10 to 1e6, without symmetry and without structure."""
    modes, photons = draw(st.integers(1, max_modes)), 10 ** draw(st.floats(1, 6))
    probe = normal((modes, n_px, n_px), draw(seeds))
    return probe * math.sqrt(photons / float(probe.abs().square().sum()))


@st.composite
def scans(draw: st.DrawFn, **fixed: Any) -> Scan:
    """Small simulated scans with their truth."""
    n_px = draw(st.sampled_from([16, 32]))
    options: dict[str, Any] = {
        "n_px": n_px,
        # A small zone plate out of focus would need frequencies beyond the Nyquist frequency.
        "probe_defocus_waves": n_px / 16,
        "object_px": draw(st.integers(48, 72)),
        "n_frames": draw(st.integers(2, 12)),
        "position_kind": draw(st.sampled_from(["raster", "fermat", "random"])),
        "probe_kind": draw(st.sampled_from(["disk", "gaussian", "zone_plate"])),
        "simulation_seed": draw(seeds),
    }
    return simulate(SimulateConfig(**{**options, **fixed}))


def cut_true_patches(scan: Scan) -> np.ndarray:
    """[M, N, N] slices of the truth at whole positions, cut with NumPy."""
    assert scan.truth is not None
    half = scan.n_px // 2
    corners = scan.positions_px.astype(np.int64) - half
    return np.stack([scan.truth[y : y + scan.n_px, x : x + scan.n_px] for y, x in corners])


@st.composite
def scan_positions(draw: st.DrawFn, min_frames: int, max_frames: int, tied: bool = True) -> np.ndarray:
    """[M, 2] places (y, x) of frames: scattered, or (`tied`) also on a raster, with some on top of each other."""
    count, seed = draw(st.integers(min_frames, max_frames)), draw(seeds)
    kind = draw(st.sampled_from(["scattered", "raster", "crowded"] if tied else ["scattered"]))
    if kind == "raster":
        columns = draw(st.integers(1, count))
        return np.stack(np.divmod(np.arange(count), columns), axis=1) * draw(coordinates(1, 20))
    places = np.random.default_rng(seed).uniform(-40, 90, (count, 2))
    return np.round(places / 30) * 30 if kind == "crowded" else places


@st.composite
def centred_offsets(draw: st.DrawFn, groups: int, members: int, max_offset_px: float) -> Tensor:
    """[groups, members, 2] offsets in 1/256 px whose mean over each group is zero, to the bit also in float32."""
    reach = math.floor(max_offset_px * 256 / (2 * max(members - 1, 1)))
    size = groups * members * 2
    values = draw(st.lists(st.integers(-reach, reach), min_size=size, max_size=size))
    places = torch.tensor(values, dtype=torch.float64).reshape(groups, members, 2)
    return (members * places - places.sum(1, keepdim=True)) / 256
