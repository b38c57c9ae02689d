"""Host memory for the groups of a scan and one pass over them, as a function of the number of groups.

    python benchmarks/memory_scaling.py --groups 1000 2000 5000 10000 20000 50000 --n-px 64 128 --out benchmarks/results

Four ways: the oracle's eager container, its lazy one, its `as_tf_dataset`, and torchptycho's store. Each point is
measured in a separate process, in which anonymous memory (RssAnon of /proc/self/status) is sampled from before the data
are read until the end of the epoch; the table shows the peak minus the initial value. Points that would not fit into
memory, by extrapolation, are omitted and named. With a GPU, the peak of device memory in training is shown too.
Writes memory_scaling.csv and memory_scaling.png. Needs Linux and the extra `oracle`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MODES = ("tf-eager", "tf-lazy", "tf-dataset", "torchptycho")
BATCH_GROUPS = 16
# Part of the memory that is available which a point may take.
_MAX_MEMORY_FRACTION = 0.6
_DISTINCT_FRAMES = 64


def read_anonymous_bytes() -> int:
    """Anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this benchmark needs Linux 4.5 or later")


class PeakMemory:
    """Largest anonymous memory while it runs."""

    def __enter__(self) -> PeakMemory:
        self.bytes = read_anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, read_anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self.bytes = max(self.bytes, read_anonymous_bytes())
        self._done.set()
        self._thread.join()


def write_scan(path: Path, n_frames: int, n_px: int) -> None:
    """A scan whose frames hold numbers of the right kind; what they show does not matter here."""
    from torchptycho.io.storage.archive import write_array, write_header

    rng = np.random.default_rng(0)
    few = rng.poisson(100, (_DISTINCT_FRAMES, n_px, n_px)).astype(np.uint16)
    positions = rng.uniform(n_px, n_px + 4 * n_frames**0.5, (2, n_frames))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("diffraction.npy", "w", force_zip64=True) as stream:
            write_header(stream, few.dtype, (n_frames, n_px, n_px))
            for start in range(0, n_frames, _DISTINCT_FRAMES):
                stream.write(few[: n_frames - start].tobytes())
        for key, values in (("ycoords", positions[0]), ("xcoords", positions[1])):
            write_array(archive, key, values)
        write_array(archive, "probeGuess", np.ones((n_px, n_px), np.complex64))


def run_oracle(kind: str, path: Path, groups: int, n_px: int) -> int:
    """Build a container of the oracle and run through it once; the number of groups that were seen."""
    import tf_reference as oracle

    with np.load(path) as scan:
        arrays = {key: scan[key] for key in ("xcoords", "ycoords", "probeGuess")} | {"diff3d": scan["diffraction"]}
    container = oracle.EagerPtychoDataContainer if kind == "tf-eager" else oracle.PtychoDataContainer
    held = container.from_raw_data_without_pc(**arrays, N=n_px, gridsize=2, nsamples=groups, K=7, seed=0)
    del arrays
    if kind == "tf-dataset":
        assert isinstance(held, oracle.PtychoDataContainer)
        return sum(len(inputs[0]) for inputs, _ in held.as_tf_dataset(BATCH_GROUPS, shuffle=True))
    # What `fit` is given when it is given arrays.
    tensors = [*oracle.prepare_inputs(held, 1.0), *oracle.prepare_outputs(held, 1.0)]
    seen = 0
    for start in range(0, len(held), BATCH_GROUPS):
        batch = [tensor[start : start + BATCH_GROUPS] * 1.0 for tensor in tensors]
        seen += len(batch[0])
    return seen


def run_store(path: Path, groups: int, folder: Path) -> int:
    """Prepare a store and run through its batches once."""
    from torchptycho.core.config import GroupConfig, PrepareConfig, RunConfig
    from torchptycho.data.datamodule import PtychoDataModule
    from torchptycho.data.prepare import prepare
    from torchptycho.io import read_scan

    config = RunConfig(prepare=PrepareConfig(val_fraction=0.0), group=GroupConfig(gridsize=2, n_groups=groups))
    store = prepare([read_scan(path)], config, folder / "store")
    seen = 0
    for batch in PtychoDataModule(store, batch_size=4 * BATCH_GROUPS).train_dataloader():
        seen += len((batch.frames.float() + 0).sum((1, 2, 3)))
    return seen


def measure_device_bytes(path: Path, groups: int, folder: Path) -> int | None:
    """Peak device memory of an epoch of training (at most 50 steps), None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    from torchptycho.core.config import GroupConfig, PrepareConfig, RunConfig, TrainConfig
    from torchptycho.training.train import train

    steps = min(50, groups // BATCH_GROUPS)
    config = RunConfig(
        prepare=PrepareConfig(val_fraction=0.0),
        group=GroupConfig(gridsize=2, n_groups=groups),
        train=TrainConfig(steps=steps, batch_size=4 * BATCH_GROUPS),
    )
    torch.cuda.reset_peak_memory_stats()
    train(path, config, folder / "run", progress=False)
    return int(torch.cuda.max_memory_allocated())


def measure(mode: str, path: Path, groups: int, n_px: int) -> dict[str, Any]:
    """One point, in this process."""
    # Imports and their first allocations are not what is asked about.
    if mode == "torchptycho":
        import torchptycho.data.datamodule
        import torchptycho.data.prepare
        import torchptycho.io  # noqa: F401
    else:
        import tf_reference

        tf_reference.translate(np.zeros((1, 4, 4, 1), np.float32), np.zeros((1, 2), np.float32))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        before = read_anonymous_bytes()
        with PeakMemory() as peak:
            if mode == "torchptycho":
                seen = run_store(path, groups, Path(folder))
            else:
                seen = run_oracle(mode, path, groups, n_px)
        device = measure_device_bytes(path, groups, Path(folder)) if mode == "torchptycho" else None
    if seen < groups - BATCH_GROUPS:
        raise RuntimeError(f"{mode}: {groups} groups were asked for, {seen} were seen")
    return {"host_bytes": peak.bytes - before, "device_bytes": device}


@dataclasses.dataclass(frozen=True)
class Point:
    mode: str
    n_px: int
    groups: int
    host_bytes: int | None
    device_bytes: int | None = None


def read_available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def fit_slope(points: list[Point], of: Callable[[Point], int | None] = lambda point: point.host_bytes) -> float | None:
    """Bytes per group, by a straight line through the points."""
    known = [(point.groups, value) for point in points if (value := of(point)) is not None]
    if len(known) < 2:
        return None
    return float(np.polyfit(*np.array(known, float).T, 1)[0])


def measure_points(groups: list[int], sizes: list[int], modes: list[str], folder: Path) -> list[Point]:
    points: list[Point] = []
    for n_px in sizes:
        for count in sorted(groups):
            path = folder / f"scan_{n_px}_{count}.npz"
            write_scan(path, count, n_px)
            for mode in modes:
                before = [point for point in points if (point.mode, point.n_px) == (mode, n_px)]
                steep = fit_slope(before)
                last = max((point.host_bytes or 0 for point in before), default=0)
                expected = last + (steep or 0) * (count - max((p.groups for p in before), default=count))
                if expected > _MAX_MEMORY_FRACTION * read_available_bytes():
                    points.append(Point(mode, n_px, count, None))
                    print(
                        f"{mode:12} N = {n_px:3}  {count:6} groups: not run, about {expected / 2**30:.0f} GiB",
                        flush=True,
                    )
                    continue
                call = [sys.executable, __file__, "--point", mode, str(path), str(count), str(n_px)]
                answer = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
                point = Point(mode, n_px, count, **json.loads(answer.splitlines()[-1]))
                points.append(point)
                device = "" if point.device_bytes is None else f", device {point.device_bytes / 2**20:.0f} MiB"
                print(
                    f"{mode:12} N = {n_px:3}  {count:6} groups: {point.host_bytes / 2**20:9.1f} MiB{device}", flush=True
                )
            path.unlink()
    return points


def write_results(points: list[Point], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "memory_scaling.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Point)])
        writer.writerows(dataclasses.astuple(point) for point in points)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({point.n_px for point in points})
    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 4), squeeze=False, sharey=True)
    for axis, n_px in zip(axes[0], sizes, strict=True):
        for mode in MODES:
            known = [p for p in points if (p.mode, p.n_px) == (mode, n_px) and p.host_bytes is not None]
            axis.loglog(
                [p.groups for p in known], [max(p.host_bytes or 0, 2**20) / 2**30 for p in known], "o-", label=mode
            )
        axis.set(title=f"N = {n_px}, groups of 4", xlabel="groups")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("anonymous host memory (GiB)")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(out / "memory_scaling.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[1000, 2000, 5000, 10_000, 20_000, 50_000])
    parser.add_argument("--n-px", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the scans, on a real disk")
    parser.add_argument("--point", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        mode, path, groups, n_px = options.point
        print(json.dumps(measure(mode, Path(path), int(groups), int(n_px))))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        points = measure_points(options.groups, options.n_px, options.modes, Path(folder))
    write_results(points, options.out)
    print(f"\n{'':12} {'N':>4} {'bytes per group':>16} {'of its 4 frames in uint16':>26}")
    for mode in options.modes:
        for n_px in options.n_px:
            of_mode = [point for point in points if (point.mode, point.n_px) == (mode, n_px)]
            for name, steep in (
                ("", fit_slope(of_mode)),
                (" (device)", fit_slope(of_mode, lambda point: point.device_bytes)),
            ):
                if steep is not None:
                    print(f"{mode + name:12} {n_px:>4} {steep:>16,.0f} {steep / (4 * n_px * n_px * 2):>25.2f}x")


if __name__ == "__main__":
    main()
