"""Planted faults in simulated scans, and what `diagnose` says of them first.

    python benchmarks/diagnose.py --out benchmarks/results

Scans of N = 64 with each fault alone, with two faults, and with none; the first diagnosis is right when it is one of
those that were planted, or nothing. The thresholds were chosen with other seeds. Writes diagnose.csv, scan by scan and
resumed where it ended, and diagnose_confusion.csv. About fifteen minutes on one idle core.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from torchptycho.core.config import SimulateConfig
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.diagnosis import diagnose

OBJECTS = ("dead_leaves", "gaussian_field", "siemens_star", "natural", "lines")


def draw_setup(rng: np.random.Generator, **options: object) -> SimulateConfig:
    values: dict[str, object] = {
        "n_px": 64,
        "object_px": 144,
        "n_frames": 110,
        "object_kind": str(rng.choice(OBJECTS)),
        "probe_kind": str(rng.choice(["zone_plate", "zone_plate", "disk", "gaussian"])),
        "probe_diameter_px": float(rng.uniform(20, 27)),
        "probe_defocus_waves": float(rng.uniform(1.0, 2.5)),
        "position_kind": str(rng.choice(["fermat", "random", "raster"])),
        "position_jitter_px": 1.5,
        "photons_per_frame": float(10 ** rng.uniform(4.5, 6.5)),
        "simulation_seed": int(rng.integers(2**31)),
    }
    return SimulateConfig(**(values | options))  # type: ignore[arg-type]


def defocus(probe: np.ndarray, phase: float) -> np.ndarray:
    """Propagate a probe: `phase` is that at the edge of the detector, in radians."""
    n = probe.shape[-1]
    q = (np.arange(n) - n // 2) / (n / 2)
    wave = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe, axes=(-2, -1))), axes=(-2, -1))
    wave = wave * np.exp(1j * phase * (q[:, None] ** 2 + q**2))
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(wave, axes=(-2, -1))), axes=(-2, -1)).astype(np.complex64)


def with_frames(scan: Scan, frames: np.ndarray, **other: object) -> Scan:
    return dataclasses.replace(scan, frames=ArrayFrames(frames), **other)  # type: ignore[arg-type]


def with_positions(scan: Scan, places: np.ndarray) -> Scan:
    return dataclasses.replace(scan, positions_px=np.ascontiguousarray(places))


def about_middle(scan: Scan, matrix: np.ndarray) -> Scan:
    middle = scan.positions_px.mean(0)
    return with_positions(scan, middle + (scan.positions_px - middle) @ matrix.T)


Plant = Callable[[Scan, np.random.Generator], Scan]


def plant_orientation(scan: Scan, rng: np.random.Generator) -> Scan:
    matrices = [np.diag([-1.0, 1.0]), np.diag([1.0, -1.0]), np.array([[0.0, 1], [1, 0]]), np.array([[0.0, 1], [-1, 0]])]
    return about_middle(scan, matrices[rng.integers(len(matrices))])


def plant_scale(scan: Scan, rng: np.random.Generator) -> Scan:
    return about_middle(scan, np.eye(2) * (1 + rng.choice([-1, 1]) * rng.uniform(0.04, 0.25)))


def plant_rotation(scan: Scan, rng: np.random.Generator) -> Scan:
    angle = np.radians(rng.choice([-1, 1]) * rng.uniform(4, 25))
    return about_middle(scan, np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]))


def plant_defocus(scan: Scan, rng: np.random.Generator) -> Scan:
    return dataclasses.replace(scan, probe=defocus(scan.probe, rng.choice([-1, 1]) * rng.uniform(60, 110)))


def plant_centre(scan: Scan, rng: np.random.Generator) -> Scan:
    shift = tuple(int(s) for s in rng.choice([-1, 1], 2) * rng.integers(3, 9, 2))
    return with_frames(scan, np.roll(scan.frames[:], shift, (1, 2)))


def plant_background(scan: Scan, rng: np.random.Generator) -> Scan:
    frames = scan.frames[:]
    level = rng.uniform(0.05, 0.3) * frames.mean()
    return with_frames(scan, frames + rng.poisson(level, frames.shape).astype(frames.dtype))


def plant_hot(scan: Scan, rng: np.random.Generator) -> Scan:
    frames = scan.frames[:].astype(np.uint32)
    where = rng.random(frames.shape[1:]) < 0.002
    where[rng.integers(64), rng.integers(64)] = True
    frames[:, where] = rng.poisson(float(frames.mean(0).max()) * 2 + 200, (len(frames), int(where.sum())))
    return with_frames(scan, frames)


def plant_gap(scan: Scan, rng: np.random.Generator) -> Scan:
    frames = scan.frames[:].copy()
    row = int(rng.choice([-1, 1]) * rng.integers(3, 10)) + 32
    if rng.random() < 0.5:
        frames[:, row : row + 4] = 0
    else:
        frames[:, :, row : row + 4] = 0
    return with_frames(scan, frames)


def plant_saturation(scan: Scan, rng: np.random.Generator) -> Scan:
    frames = scan.frames[:].astype(np.uint32)
    limit = int(frames.max() * rng.uniform(0.15, 0.4)) + 1
    return with_frames(scan, np.minimum(frames, limit))


def plant_mask(scan: Scan, rng: np.random.Generator) -> Scan:
    mean = scan.frames[:].mean(0)
    mask = mean < np.quantile(mean, rng.uniform(0.9, 0.96))
    return dataclasses.replace(scan, mask=mask)


def plant_domain(scan: Scan, rng: np.random.Generator) -> Scan:
    if rng.random() < 0.5:
        return dataclasses.replace(scan, domain="amplitude")
    return with_frames(scan, np.sqrt(scan.frames[:].astype(np.float32)))


def plant_positions(scan: Scan, rng: np.random.Generator) -> Scan:
    count = scan.n_frames
    if rng.random() < 0.5:
        return with_positions(scan, scan.positions_px + rng.normal(0, rng.uniform(0.8, 2.0), (count, 2)))
    t = np.linspace(-0.5, 0.5, count)[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    drift = t * rng.uniform(5, 10) + 1.5 * np.cos(2 * np.pi * t)
    return with_positions(scan, scan.positions_px + drift * np.array([np.sin(angle), np.cos(angle)]))


def plant_lost(scan: Scan, rng: np.random.Generator) -> Scan:
    return with_positions(scan, scan.positions_px + rng.normal(0, rng.uniform(4, 6), (scan.n_frames, 2)))


def plant_several(scan: Scan, rng: np.random.Generator) -> Scan:
    config = scan.metadata["simulation"] | {"simulation_seed": int(rng.integers(2**31))}
    other = simulate(SimulateConfig(**config), positions_px=scan.positions_px)
    frames = np.concatenate([scan.frames[:].astype(np.uint32), other.frames[:].astype(np.uint32)])
    return dataclasses.replace(
        scan,
        frames=ArrayFrames(frames),
        positions_px=np.concatenate([scan.positions_px, scan.positions_px]),
        scan_id=np.zeros(len(frames), np.int64),
    )


def plant_near_field(scan: Scan, rng: np.random.Generator) -> Scan:
    """Shadow images of the sample, magnified, behind a focus far in front of it."""
    magnification, n_px = float(rng.uniform(0.2, 0.4)), scan.n_px
    coarse = rng.uniform(0.4, 1, (40, 40))
    rows, columns = np.indices((n_px, n_px)) - n_px / 2
    light = 500 * np.exp(-(rows**2 + columns**2) / (2 * 16.0**2))
    frames = []
    for y, x in scan.positions_px * 2:
        places = ((rows / magnification + y + 200) / 8, (columns / magnification + x + 200) / 8)
        frames.append(rng.poisson(light * coarse[places[0].astype(int) % 40, places[1].astype(int) % 40]))
    return dataclasses.replace(with_frames(scan, np.array(frames, np.uint16)), positions_px=scan.positions_px * 2)


def plant_wrap(scan: Scan, rng: np.random.Generator) -> Scan:
    """A probe whose light reaches the border of the frame."""
    width = float(rng.uniform(44, 60))
    y, x = np.indices((64, 64)) - 32
    probe = np.exp(-2 * np.log(2) * (y**2 + x**2) / width**2) * np.exp(0.02j * (y**2 + x**2))
    config = scan.metadata["simulation"]
    return simulate(SimulateConfig(**config), probe=probe)


# Name of the fault -> options of the simulation, what is done to the scan.
FAULTS: dict[str, tuple[dict[str, object], Plant | None]] = {
    "orientation": ({}, plant_orientation),
    "scale": ({}, plant_scale),
    "rotation": ({}, plant_rotation),
    "defocus": ({"probe_kind": "zone_plate", "probe_defocus_waves": 2.5}, plant_defocus),
    "centre": ({}, plant_centre),
    "background": ({}, plant_background),
    "hot pixels": ({}, plant_hot),
    "dead pixels": ({}, plant_gap),
    "saturation": ({}, plant_saturation),
    "mask": ({}, plant_mask),
    "domain": ({}, plant_domain),
    "modes": ({"probe_modes": 3}, lambda scan, rng: dataclasses.replace(scan, probe=scan.probe[:1])),
    "variable probe": ({"probe_wander": 0.4}, lambda scan, rng: scan),
    "power": ({"power_fluctuation": 0.15}, lambda scan, rng: scan),
    "positions": ({}, plant_positions),
    "lost positions": ({}, plant_lost),
    "several scans": ({}, plant_several),
    "overlap": ({"n_frames": 30, "object_px": 160, "probe_diameter_px": 20.0}, None),
    "raster": ({"position_kind": "raster", "position_jitter_px": 0.0}, None),
    "dose": ({"photons_per_frame": 100.0}, None),
    "near field": ({}, plant_near_field),
    "wrap": ({}, plant_wrap),
}


# Faults that can be planted two at a time.
TOGETHER = (
    "orientation", "scale", "rotation", "defocus", "centre", "background", "hot pixels", "dead pixels", "modes",
    "variable probe", "power", "positions",
)  # fmt: skip
# The counts do not tell these apart; the remedies differ by their reach alone.
SAME = {"lost positions": "positions"}
HEALTHY = "healthy"
# Of the neighbourhood: fewer than by default, for the time of the table.
FRAMES = 64


def make_scan(faults: tuple[str, ...], seed: int) -> Scan:
    rng = np.random.default_rng([seed, *" ".join(faults).encode()])
    options: dict[str, object] = {}
    for fault in faults:
        options |= FAULTS[fault][0]
    scan = simulate(draw_setup(rng, **options))
    for fault in faults:
        plant = FAULTS[fault][1]
        if plant is not None:
            scan = plant(scan, rng)
    return dataclasses.replace(scan, metadata={}, truth=None)


def list_cases(seed: int, singles: int, pairs: int, healthy: int) -> list[tuple[tuple[str, ...], int]]:
    """List what is planted: each fault in turn, random pairs, and nothing."""
    rng = np.random.default_rng(seed)
    alone = [((name,), seed + turn) for turn in range(singles) for name in FAULTS]
    together: list[tuple[tuple[str, ...], int]] = []
    for number in range(pairs):
        first, second = rng.choice(len(TOGETHER), 2, replace=False)
        together.append(((TOGETHER[first], TOGETHER[second]), seed + number))
    nothing: list[tuple[tuple[str, ...], int]] = [((), seed + number) for number in range(healthy)]
    # Mixed, so that a table that has not been finished is a fair sample.
    cases = [*alone, *together, *nothing]
    rng.shuffle(cases)
    return cases


def run_case(faults: tuple[str, ...], seed: int, rounds: int) -> dict[str, object]:
    scan = make_scan(faults, seed)
    begun = time.process_time()
    found = diagnose(scan, frames=FRAMES, rounds=rounds)
    seconds = time.process_time() - begun
    named = [one.fault for one in found.findings]
    planted = [SAME.get(name, name) for name in faults]
    right = bool(named) and named[0] in planted if faults else not named
    return {
        "planted": " + ".join(faults) or HEALTHY,
        "seed": seed,
        "first": named[0] if named else "nothing",
        "found": " + ".join(named) or "nothing",
        "right": right,
        "all": set(planted) <= set(named),
        "misfit": f"{found.misfit:.3f}" if found.misfit is not None else "",
        "corrected": f"{found.corrected_misfit:.3f}" if found.corrected_misfit is not None else "",
        "options": found.options,
        "seconds": f"{seconds:.1f}",
    }


def write_confusion(rows: list[dict[str, str]], path: Path) -> None:
    """Write how often each planted fault was diagnosed as what first."""
    single = [row for row in rows if " + " not in row["planted"]]
    planted = [name for name in (*FAULTS, HEALTHY) if any(row["planted"] == name for row in single)]
    named = sorted({row["first"] for row in single})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["planted", *named])
        for name in planted:
            firsts = [row["first"] for row in single if row["planted"] == name]
            writer.writerow([name, *(firsts.count(one) or "" for one in named)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2000)
    parser.add_argument("--singles", type=int, default=3, help="scans with each fault alone")
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--healthy", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1, help="remedies that are looked for one after the other")
    parser.add_argument("--only", nargs="*", help="faults, as a + b")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    path = options.out / "diagnose.csv"
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(row["planted"], int(row["seed"])) for row in rows}
    for faults, seed in list_cases(options.seed, options.singles, options.pairs, options.healthy):
        name = " + ".join(faults) or HEALTHY
        if (name, seed) in done or (options.only and name not in options.only):
            continue
        row = {key: str(value) for key, value in run_case(faults, seed, options.rounds).items()}
        rows.append(row)
        print(" | ".join(row.values()), flush=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)
    write_confusion(rows, options.out / "diagnose_confusion.csv")
    for kind, chosen in (
        ("with faults", [row for row in rows if row["planted"] != HEALTHY]),
        ("without", [row for row in rows if row["planted"] == HEALTHY]),
    ):
        if chosen:
            right = sum(row["right"] == "True" for row in chosen)
            print(f"{kind}: right at first {right} of {len(chosen)} ({right / len(chosen):.0%})")


if __name__ == "__main__":
    main()
