"""Refinement of large scans: memory, reading of compressed pieces, large canvases, several processes.

    python benchmarks/scale.py --parts memory pieces canvas processes --out benchmarks/results

memory: peak of anonymous memory (RssAnon of /proc/self/status) of one epoch, for numbers of frames of 64x64.
pieces: bytes read in one pass over compressed HDF5, relative to its size, with 1, 16 and 64 frames in a chunk, in the
order of refinement and at random. canvas: processor time of an epoch of the same frames on a large canvas, relative to
a small one. processes: processor time of an epoch summed over the processes, relative to one (1 is what they would need
without each other's sums), and the distance of their images.
Each point is measured in a process of its own. Writes scale.csv. Needs Linux.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("memory", "pieces", "canvas", "processes")
DISTINCT = 64


def write_frames(path: Path, n_frames: int, n_px: int) -> None:
    """Write frames of the right kind one after the other; what they show does not matter here."""
    few = np.random.default_rng(0).poisson(100, (DISTINCT, n_px, n_px)).astype(np.uint16)
    with path.open("wb") as file:
        for start in range(0, n_frames, DISTINCT):
            few[: n_frames - start].tofile(file)


def make_scan(path: Path, n_frames: int, n_px: int, field_px: float) -> Any:
    """Make a scan of mapped frames at random positions in a square field."""
    from torchptycho.core.scan import ArrayFrames, Scan

    places = np.random.default_rng(1).uniform(0, field_px, (n_frames, 2))
    places[:2] = [[0, 0], [field_px, field_px]]
    return Scan(
        frames=ArrayFrames(np.memmap(path, np.uint16, mode="r", shape=(n_frames, n_px, n_px))),
        domain="counts",
        positions_px=places,
        probe=np.ones((1, n_px, n_px), np.complex64),
        mask=np.ones((n_px, n_px), bool),
        scan_id=np.zeros(n_frames, np.int64),
    )


def measure_memory(path: Path, n_frames: int) -> float:
    """Peak of anonymous memory in MB."""
    from memory_scaling import PeakMemory

    from torchptycho.core.config import RefineConfig
    from torchptycho.reconstructors.iterative import refine

    with PeakMemory() as peak:
        refine(
            make_scan(path, n_frames, 64, 400.0), config=RefineConfig(epochs=1, patience=None, polish=0.0), judge=False
        )
    return peak.bytes / 1e6


def measure_pieces(path: Path, n_frames: int, per_chunk: int) -> tuple[float, float]:
    """Bytes read in a pass, relative to the file, in the order of refinement and at random."""
    import h5py
    import torch

    from torchptycho.core.config.read import MappingConfig, ReadConfig
    from torchptycho.io import read_scan
    from torchptycho.reconstructors.iterative import frame_source
    from torchptycho.reconstructors.iterative.problem import open_problem

    frame_source.MAX_MEMORY_BYTES = 0
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        values = rng.integers(0, 4096, (n_frames, 64, 64)).astype(np.uint16)
        file.create_dataset("a", data=values, chunks=(per_chunk, 64, 64), compression="gzip", compression_opts=1)
        file["p"] = rng.uniform(0, 300, (n_frames, 2))
    mapping = MappingConfig(frames="a", positions_y="p[0]", positions_x="p[1]", positions_unit="px")
    found = []
    with open_problem(read_scan(path, ReadConfig(mapping=mapping, guess_probe=True))) as problem:
        generator = torch.Generator().manual_seed(0)
        # At random, a tenth of the frames shows it.
        for order in (problem.draw_order(generator), torch.randperm(n_frames, generator=generator)[: n_frames // 10]):
            before = count_bytes_read()
            for batch in torch.split(order, 64) if len(order) < n_frames else [torch.split(order, 64)]:
                # One batch after the other knows of no later one, as reading without an order would.
                for _ in problem.iterate_counts(batch if isinstance(batch, tuple) else (batch,)):
                    pass
            found.append((count_bytes_read() - before) / path.stat().st_size * n_frames / len(order))
    return found[0], found[1]


def count_bytes_read() -> int:
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


def measure_canvas(path: Path, n_frames: int, field_px: float) -> float:
    """Processor seconds of an epoch, the least of three."""
    from torchptycho.core.config import RefineConfig
    from torchptycho.reconstructors.iterative import refine

    marks: list[float] = []
    config = RefineConfig(epochs=4, patience=None, polish=0.0, probe_update=False)
    scan = make_scan(path, n_frames, 64, field_px)
    refine(scan, config=config, judge=False, on_epoch=lambda *_: marks.append(time.process_time()))
    return float(np.diff(marks).min())


def measure_processes(devices: int) -> tuple[float, np.ndarray]:
    """Processor seconds of an epoch, summed over the processes, and the object."""
    from torchptycho.core.config import RefineConfig, SimulateConfig
    from torchptycho.data.simulation import simulate
    from torchptycho.reconstructors.iterative import refine

    scan = simulate(SimulateConfig(n_px=128, object_px=400, n_frames=640, photons_per_frame=1e6))
    who = resource.RUSAGE_SELF if devices == 1 else resource.RUSAGE_CHILDREN
    seconds: list[float] = []
    for epochs in (2, 8):
        before = resource.getrusage(who)
        config = RefineConfig(epochs=epochs, patience=None, polish=0.0, batch_size=64)
        image = refine(scan, config=config, device="cpu", devices=devices, judge=False)
        after = resource.getrusage(who)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # What both took in addition was the start.
    return (seconds[1] - seconds[0]) / 6, image.object


def measure_point(folder: Path, part: str, first: str, second: str) -> dict[str, float]:
    """Measure one point, in this process."""
    path = folder / "frames"
    if part == "memory":
        write_frames(path, int(first), 64)
        return {"peak_MB": measure_memory(path, int(first))}
    if part == "pieces":
        in_order, at_random = measure_pieces(path, int(first), int(second))
        return {"read_per_file": in_order, "read_per_file_at_random": at_random}
    if part == "canvas":
        write_frames(path, int(first), 64)
        return {"processor_s": measure_canvas(path, int(first), float(second))}
    seconds, found = measure_processes(int(first))
    kept = folder / "one.npy"
    if first == "1":
        np.save(kept, found)
        return {"processor_s": seconds}
    one = np.load(kept)
    return {"processor_s": seconds, "distance": float(np.linalg.norm(found - one) / np.linalg.norm(one))}


def list_points(parts: list[str]) -> Iterator[tuple[str, str, str]]:
    numbers = (200, 5_000, 10_000, 20_000, 40_000, 80_000)
    points = [("memory", str(number), "") for number in numbers]
    points += [("pieces", "4000", str(per_chunk)) for per_chunk in (1, 16, 64)]
    points += [("canvas", "2000", str(field_px)) for field_px in (385, 2935)]
    points += [("processes", str(devices), "") for devices in (1, 2)]
    return (point for point in points if point[0] in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the scans, with 700 MB")
    parser.add_argument("--point", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        folder, *point = options.point
        print(json.dumps(measure_point(Path(folder), *point)))
        return
    rows: list[dict[str, Any]] = []
    base: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for part, first, second in list_points(options.parts):
            call = [sys.executable, __file__, "--point", folder, part, first, second]
            answer = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(answer.splitlines()[-1])
            if "processor_s" in found:
                base.setdefault(part, found["processor_s"])
                found["relative_to_first"] = found["processor_s"] / base[part]
            for key, value in found.items():
                rows.append({"part": part, "case": f"{first} {second}".strip(), "figure": key, "value": f"{value:.4g}"})
                print(f"{part:10} {rows[-1]['case']:12} {key:24} {rows[-1]['value']}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "scale.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["part", "case", "figure", "value"])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
