"""Speed of grouping, preparing and batching, each compared with the unavoidable work.

    python benchmarks/data.py                                    all parts, into benchmarks/results/data.csv
    python benchmarks/data.py --parts grouping --positions 10000 --no-oracle

grouping: `group` compared with the neighbour search alone (tree and query of K + 1 neighbours, in the order of the
tree's leaves) and the oracle's `group_indices`, both with gridsize 2 and K = 7, every frame a seed. prepare: `prepare`
of a file compared with a plain copy of it; both end when the bytes are on disk. batches: an epoch of random groups,
64 frames at a time, compared with reading as many consecutive frames; warm, and cold (after dropping the file's
pages from the cache, as far as a user can).

Every figure is the best of several runs, which alternate with the reference. `ratio` is the wall time of the reference
divided by that of the row, `cpu_ratio` the same in processor time, which estimates the former on an idle machine if the
disk is not the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import itertools
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from memory_scaling import write_scan
from scipy.spatial import cKDTree

from torchptycho.core.config import GroupConfig, MappingConfig, PrepareConfig, RunConfig
from torchptycho.data.cache import StoreRequest
from torchptycho.data.datamodule import PtychoDataModule
from torchptycho.data.grouping import group, partition
from torchptycho.data.prepare import open_if_unchanged, prepare
from torchptycho.data.store import Store
from torchptycho.io import read_scan

PARTS = ("grouping", "prepare", "batches")
GRIDSIZE, K, STEP_PX = 2, 7, 4.0
BATCH_FRAMES = 64

Row = dict[str, Any]


class Timing(NamedTuple):
    """Seconds by the clock, and of the processor."""

    seconds: float
    cpu_s: float

    def compute_ratios(self, other: Timing) -> Row:
        return {"ratio": other.seconds / self.seconds, "cpu_ratio": other.cpu_s / self.cpu_s}


def time_call(work: Callable[[], object]) -> Timing:
    gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return Timing(time.perf_counter() - start, time.process_time() - cpu)


def take_shorter(one: Timing | None, other: Timing) -> Timing:
    return other if one is None else Timing(min(one.seconds, other.seconds), min(one.cpu_s, other.cpu_s))


def time_best(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Shortest time of each; what is longer was spent on something else. They take turns."""
    times: dict[str, Timing] = {}
    for _ in range(repeats):
        for name, work in works.items():
            times[name] = take_shorter(times.get(name), time_call(work))
    return times


def search_neighbours(positions_px: np.ndarray) -> object:
    tree = cKDTree(positions_px, balanced_tree=False, compact_nodes=False)
    return tree.query(positions_px[tree.indices], k=K + 1, workers=-1)


def measure_grouping(positions: list[int], repeats: int, *, oracle: bool) -> Iterator[Row]:
    config = GroupConfig(gridsize=GRIDSIZE, neighbor_count=K)
    for n in positions:
        positions_px = np.random.default_rng(0).uniform(0, STEP_PX * n**0.5, (n, 2))
        works: dict[str, Callable[[], object]] = {
            "search": lambda p=positions_px: search_neighbours(p),
            "group": lambda p=positions_px: group(p, config),
        }
        if oracle:
            from tf_reference import group_indices

            works["oracle"] = lambda p=positions_px: group_indices(p[:, 1], p[:, 0], GRIDSIZE, K, len(p), seed=0)
        taken = time_best(works, repeats if n < 500_000 else 1)
        taken["partition"] = time_best({"it": lambda p=positions_px: partition(p, GRIDSIZE)}, 1)["it"]
        for name, each in taken.items():
            yield {
                "part": "grouping",
                "case": name,
                "size": n,
                **each._asdict(),
                **each.compute_ratios(taken["search"]),
            }


def write_hdf5(path: Path, source: Path) -> None:
    """The frames of a scan in chunks of 8, uncompressed, with positions."""
    scan = read_scan(source)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", scan.frames.shape, scan.frames.dtype, chunks=(8, *scan.frames.shape[1:]))
        start = 0
        for chunk in scan.frames.chunks(512):
            data[start : start + len(chunk)] = chunk
            start += len(chunk)
        file["y"], file["x"], file["probe"] = *scan.positions_px.T, scan.probe


def copy_file(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def measure_preparation(folder: Path, frames: int, n_px: int, repeats: int) -> Iterator[Row]:
    write_scan(folder / "scan.npz", frames, n_px)
    write_hdf5(folder / "scan.h5", folder / "scan.npz")
    mapping = MappingConfig(frames="data", positions_y="y", positions_x="x", positions_unit="px", probe="probe")
    for name, of_file in (("scan.npz", None), ("scan.h5", mapping)):
        source, store = folder / name, folder / "store"
        config = RunConfig(prepare=PrepareConfig(mapping=of_file), group=GroupConfig(gridsize=GRIDSIZE))
        request = StoreRequest.from_sources([source], config)

        def prepare_again(
            source: Path = source, config: RunConfig = config, request: StoreRequest | None = request
        ) -> None:
            prepare([read_scan(source, config.prepare)], config, folder / "store", request=request)

        works: dict[str, Callable[[], object]] = {
            "copy": lambda source=source: copy_file(source, folder / "copy"),
            "prepare": prepare_again,
        }
        works["reopen"] = lambda request=request: open_if_unchanged(folder / "store", request)
        times: dict[str, Timing] = {}
        for _ in range(repeats):
            for work, taken in time_best(works, 1).items():
                times[work] = take_shorter(times.get(work), taken)
            shutil.rmtree(store)
        size = source.stat().st_size
        for work, each in times.items():
            yield {
                "part": "prepare",
                "case": f"{work} {source.suffix[1:]}",
                "size": size,
                **each._asdict(),
                "MB_per_s": None if work == "reopen" else size / 1e6 / each.seconds,
                **each.compute_ratios(times["copy"]),
            }
    (folder / "copy").unlink()


def drop_from_cache(file: Path) -> None:
    """Ask that the file be read from the disk next time; no process may have it mapped."""
    gc.collect()
    _sync(file)
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure_batches(folder: Path, frames: int, n_px: int, repeats: int, workers: list[int]) -> Iterator[Row]:
    if not (folder / "scan.npz").exists():
        write_scan(folder / "scan.npz", frames, n_px)
    config = RunConfig(prepare=PrepareConfig(val_fraction=0), group=GroupConfig(gridsize=GRIDSIZE))
    prepare([read_scan(folder / "scan.npz")], config, folder / "batches")
    (file,) = (folder / "batches").glob("scans/*/frames.memmap")
    frame_bytes = n_px**2 * 2
    # As many frames as an epoch has: one group per frame.
    n_batches = frames * GRIDSIZE**2 // BATCH_FRAMES

    def read_contiguously(n: int) -> Timing:
        def read() -> None:
            with file.open("rb", buffering=0) as stream:
                for _ in range(n):
                    # A new array for each, as each batch is one.
                    block = np.empty(BATCH_FRAMES * frame_bytes, np.uint8)
                    if stream.readinto(block) < len(block):
                        stream.seek(0)

        return time_call(read)

    def load_groups(n: int, num_workers: int) -> Timing:
        data = PtychoDataModule(Store.open(folder / "batches"), batch_size=BATCH_FRAMES, num_workers=num_workers)
        loader = iter(data.train_dataloader())
        return time_call(lambda: deque(itertools.islice(loader, n), maxlen=0))

    for cold in (False, True):
        # From a cold cache every frame counts once: the second look at it is warm.
        n = min(n_batches - 1, frames // BATCH_FRAMES if cold else n_batches - 1)
        if not cold:
            read_contiguously(n)
        works: dict[str, Callable[[], Timing]] = {"contiguous read": lambda n=n: read_contiguously(n)}
        works |= {f"groups, {count} workers": lambda n=n, count=count: load_groups(n, count) for count in workers}
        times: dict[str, Timing] = {}
        for _ in range(repeats):
            for name, work in works.items():
                if cold:
                    drop_from_cache(file)
                times[name] = take_shorter(times.get(name), work())
        for name, each in times.items():
            yield {
                "part": "batches",
                "case": f"{name}, {'cold' if cold else 'warm'}",
                "size": n,
                **each._asdict(),
                "MB_per_s": n * BATCH_FRAMES * frame_bytes / 1e6 / each.seconds,
                "per_s": n / each.seconds,
                **each.compute_ratios(times["contiguous read"]),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--positions", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--no-oracle", action="store_true", help="leave the oracle out; it needs TensorFlow")
    parser.add_argument("--frames", type=int, default=16_384, help="frames of the file")
    parser.add_argument("--n-px", type=int, default=128, help="their edge")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder with room for four times the file, on a real disk")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    columns = ["seconds", "cpu_s", "MB_per_s", "per_s", "ratio", "cpu_ratio"]
    print(f"{os.cpu_count()} cores, {len(os.sched_getaffinity(0))} of them for this; best of {options.repeats}")
    print(f"{'':44}" + "".join(f"{name:>10}" for name in columns))
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch, contextlib.ExitStack() as stack:
        folder, size = Path(scratch), (options.frames, options.n_px, options.repeats)
        work: dict[str, Callable[[], Iterator[Row]]] = {
            "grouping": lambda: measure_grouping(options.positions, options.repeats, oracle=not options.no_oracle),
            "prepare": lambda: measure_preparation(folder, *size),
            "batches": lambda: measure_batches(folder, *size, options.workers),
        }
        out = stack.enter_context((options.out / "data.csv").open("w", newline="", encoding="utf-8"))
        writer = csv.DictWriter(out, ["part", "case", "size", *columns])
        writer.writeheader()
        for part in options.parts:
            for row in work[part]():
                figures = {key: f"{row[key]:.4g}" for key in columns if row.get(key) is not None}
                print(
                    f"{row['part'] + ': ' + row['case'] + ' (' + format(row['size'], ',') + ')':44}"
                    + "".join(f"{figures.get(key, ''):>10}" for key in columns),
                    flush=True,
                )
                writer.writerow({key: row[key] for key in ("part", "case", "size")} | figures)


if __name__ == "__main__":
    main()
