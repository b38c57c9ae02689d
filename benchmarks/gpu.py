"""Everything that a GPU has to show, in one command of a few minutes that needs no network.

    python benchmarks/gpu.py --out benchmarks/results
    python benchmarks/gpu.py --emulated        # without a GPU: the same calls, small, on the tests' emulated device

Each part is a process of its own, so that a failure, a crash or a part that takes too long is recorded and the rest
goes on. Parts:

- tests: all of tests/gpu
- machine: bandwidth of a copy, and forward and inverse FFTs of frames, which bound what follows
- stitch: patches onto a canvas, over the time that moving their bytes takes at that bandwidth
- reconstruct: frames per second from file to image, of each generator, in float32, bfloat16 and compiled
- export: the same with the exported network, ONNX and AOT
- refine: seconds per epoch of each method, with 1,000 and 10,304 frames of 128x128
- prior: the learnt prior on a canvas of 1,024 x 1,024 px
- train: a training step by its parts
- live: a replay through the network
- memory: peak of the GPU at one and four times as many frames, of reconstruct and refine
- determinism: differences of two runs with the same seed

Writes gpu.json and gpu.csv: part, what, value, unit, or the error. An emulated run says nothing of speed and is not
written to results.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
GENERATORS = ("pie_unet", "resunet", "cnn")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each part computes."""

    copy_bytes: int = 1 << 30
    fft_frames: int = 2048
    frame_edges_px: tuple[int, ...] = (64, 128, 256)
    patches: tuple[tuple[int, int], ...] = ((1000, 64), (10_000, 128))
    reconstruct_frames: tuple[int, ...] = (8000, 4000, 1000)
    refine_frames: tuple[int, ...] = (1000, 10_304)
    refine_px: int = 128
    canvas_px: int = 1024
    repetitions: int = 5


FULL = Sizes()
SMALL = Sizes(
    copy_bytes=1 << 22, fft_frames=16, frame_edges_px=(64,), patches=((32, 64),), reconstruct_frames=(48,),
    refine_frames=(48,), refine_px=32, canvas_px=96, repetitions=1,
)  # fmt: skip


def measure_s(run: Callable[[], Any], repetitions: int) -> float:
    """Median time of a call in seconds, after one that does not count."""
    import torch

    run()
    times = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def run_tests(sizes: Sizes) -> Iterator[Row]:
    """Run tests/gpu; on a machine without a GPU they emulate one themselves."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    yield {"what": lines[-1] if lines else "no output", "value": answer.returncode, "unit": "exit code"}
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield {"what": line, "value": 1, "unit": "failure"}


def measure_machine(sizes: Sizes) -> Iterator[Row]:
    """Measure what bounds the rest."""
    import torch

    with contextlib.suppress(AttributeError, TypeError):
        yield {"what": torch.cuda.get_device_name(0), "value": torch.cuda.mem_get_info(0)[1] / 2**30, "unit": "GiB"}
    yield {"what": f"torch {torch.__version__}", "value": 1, "unit": "version"}
    source = torch.zeros(sizes.copy_bytes // 4, device="cuda")
    target = torch.empty_like(source)
    seconds = measure_s(lambda: target.copy_(source), sizes.repetitions)
    yield {"what": "copy", "value": 2 * source.nbytes / seconds / 1e9, "unit": "GB/s"}
    for n_px in sizes.frame_edges_px:
        wave = torch.zeros(sizes.fft_frames, n_px, n_px, dtype=torch.complex64, device="cuda")
        seconds = measure_s(lambda wave=wave: torch.fft.ifft2(torch.fft.fft2(wave)), sizes.repetitions)
        yield {"what": f"FFT and inverse, {n_px} px", "value": sizes.fft_frames / seconds, "unit": "frames/s"}


def measure_stitching(sizes: Sizes) -> Iterator[Row]:
    from stitch import measure_canvas

    for patches, n_px in sizes.patches:
        for found in measure_canvas(patches, n_px, "cuda", sizes.repetitions, "wall"):
            spread = ", with spread" if found["spread"] else ""
            what = f"{patches} patches of {n_px} px{spread}"
            yield {"what": what, "value": found["seconds"], "unit": "s"}
            yield {"what": f"{what}, over the bound", "value": found["seconds"] / found["bound"], "unit": "ratio"}


def measure_reconstruction(sizes: Sizes) -> Iterator[Row]:
    """Measure frames per second from an NPZ to the image in memory."""
    from reconstruct import make_trained_network

    from torchptycho.core.config import ReconstructConfig
    from torchptycho.models.loading import open_network
    from torchptycho.reconstructors.network_reconstruction import reconstruct

    variants = {
        "float32": ReconstructConfig(),
        "bfloat16": ReconstructConfig(predict_precision="bf16-mixed"),
        "compiled": ReconstructConfig(predict_compile=True),
    }
    for (n_px, frames), generator in (
        (size, name)
        for size in zip(sizes.frame_edges_px, sizes.reconstruct_frames, strict=False)
        for name in GENERATORS
    ):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, scan, _ = make_trained_network(generator, n_px, frames, Path(folder))
            for name, config in variants.items():

                def run(config: ReconstructConfig = config, checkpoint: Path = checkpoint, scan: Path = scan) -> None:
                    network = open_network(checkpoint, "torch", accelerator="gpu")
                    reconstruct(network, scan, config, accelerator="gpu", progress=False)

                what = f"{generator} {n_px} px {name}"
                try:
                    seconds = measure_s(run, 1)
                except (RuntimeError, NotImplementedError) as error:
                    yield {"what": what, "error": str(error).splitlines()[0]}
                    continue
                yield {"what": what, "value": frames / seconds, "unit": "frames/s"}


def measure_exports(sizes: Sizes) -> Iterator[Row]:
    from reconstruct import export_checkpoint, make_trained_network

    from torchptycho.core.config import ReconstructConfig
    from torchptycho.core.errors import TorchptychoError
    from torchptycho.models.loading import open_network
    from torchptycho.reconstructors.network_reconstruction import reconstruct

    n_px, frames = sizes.frame_edges_px[0], sizes.reconstruct_frames[0]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, scan, _ = make_trained_network("pie_unet", n_px, frames, Path(folder))
        for engine in ("onnx", "aot"):
            try:
                file = export_checkpoint(checkpoint, scan, engine, "gpu", Path(folder))

                def run(file: Path = file, engine: Any = engine) -> None:
                    network = open_network(file, engine, accelerator="gpu")
                    reconstruct(network, scan, ReconstructConfig(), accelerator="gpu", progress=False)

                seconds = measure_s(run, 1)
            except (RuntimeError, NotImplementedError, ImportError, TorchptychoError) as error:
                yield {"what": engine, "error": (str(error) or repr(error)).splitlines()[0]}
                continue
            yield {"what": f"{engine} {n_px} px", "value": frames / seconds, "unit": "frames/s"}


def _simulate_scan(n_px: int, frames: int) -> Any:
    from torchptycho.data.simulation import simulate

    edge = int(n_px + 8 * frames**0.5)
    return simulate({"n_px": n_px, "object_px": edge, "n_frames": frames, "photons_per_frame": 1e6})


def measure_refinement(sizes: Sizes) -> Iterator[Row]:
    from torchptycho.reconstructors.iterative import refine

    for frames in sizes.refine_frames:
        scan = _simulate_scan(sizes.refine_px, frames)
        for method in ("rpie", "lsqml", "gradient"):
            done: list[float] = []
            refine(
                scan,
                config={"method": method, "epochs": 6, "patience": None, "regularization": "none"},
                device="gpu",
                judge=False,
                on_epoch=lambda epoch, misfit, done=done: done.append(time.perf_counter()),
            )
            # The first epochs compile kernels and plan FFTs.
            spans = [after - before for before, after in itertools.pairwise(done[1:])]
            what = f"{method}, {frames} frames of {sizes.refine_px} px"
            yield {"what": what, "value": sorted(spans)[len(spans) // 2], "unit": "s per epoch"}


def measure_prior(sizes: Sizes) -> Iterator[Row]:
    import torch

    from torchptycho.models.prior import apply_prior, load_prior

    network = load_prior(device="cuda").network
    image = torch.ones(sizes.canvas_px, sizes.canvas_px, dtype=torch.complex64, device="cuda")
    sigma = torch.full((sizes.canvas_px, sizes.canvas_px), 0.1, device="cuda")
    with torch.no_grad():
        seconds = measure_s(lambda: apply_prior(network, image, sigma), sizes.repetitions)
    yield {"what": f"canvas of {sizes.canvas_px} px", "value": seconds, "unit": "s"}


def measure_training(sizes: Sizes) -> Iterator[Row]:
    from torchptycho.core.config import GroupConfig, RunConfig, TrainConfig
    from torchptycho.training.train import train

    steps = 20 if sizes is FULL else 2
    for precision in ("32-true", "bf16-mixed"):
        with tempfile.TemporaryDirectory() as folder:
            scan = _simulate_scan(64, 8 * steps)
            config = RunConfig(
                group=GroupConfig(gridsize=2),
                train=TrainConfig(steps=steps, batch_size=8, accelerator="gpu", precision=precision, on_flat="warn"),
            )
            begin = time.perf_counter()
            train(scan, config, Path(folder) / "run", progress=False)
            yield {"what": f"{steps} steps, {precision}", "value": time.perf_counter() - begin, "unit": "s with start"}


def measure_live(sizes: Sizes) -> Iterator[Row]:
    """Replay a scan through `watch` on the GPU, in processes of their own."""
    frames = str(sizes.reconstruct_frames[0])
    command = [sys.executable, str(ROOT / "benchmarks" / "live.py"), "--n-px", "64", "--frames", frames,
               "--received", frames, "--out"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        answer = subprocess.run([*command, folder], capture_output=True, text=True, check=False, cwd=ROOT)
        if answer.returncode:
            yield {"what": "replay", "error": (answer.stderr.strip().splitlines() or ["no message"])[-1]}
            return
        with (Path(folder) / "live.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    with contextlib.suppress(ValueError):
                        yield {"what": name, "value": float(value), "unit": "see live.py"}


def measure_memory(sizes: Sizes) -> Iterator[Row]:
    import torch

    from torchptycho.reconstructors.iterative import refine

    few = sizes.refine_frames[0]
    for frames in (few, 4 * few):
        scan = _simulate_scan(sizes.refine_px, frames)
        torch.cuda.reset_peak_memory_stats()
        refine(scan, config={"epochs": 1, "regularization": "none"}, device="gpu", judge=False)
        yield {"what": f"refine, {frames} frames", "value": torch.cuda.max_memory_allocated() / 2**20, "unit": "MiB"}


def measure_determinism(sizes: Sizes) -> Iterator[Row]:
    import numpy as np

    from torchptycho.reconstructors.iterative import refine

    scan = _simulate_scan(sizes.refine_px, sizes.refine_frames[0])
    options: dict[str, Any] = {"epochs": 5, "regularization": "none"}
    first, second, here = (
        refine(scan, config=options, device=device, judge=False).object for device in ("gpu", "gpu", "cpu")
    )
    for what, other in (("two runs on the GPU", second), ("GPU and CPU", here)):
        distance = np.linalg.norm(first - other) / np.linalg.norm(here)
        yield {"what": what, "value": float(distance), "unit": "relative L2 distance"}


PARTS: dict[str, tuple[Callable[[Sizes], Iterator[Row]], float]] = {
    "tests": (run_tests, 150),
    "machine": (measure_machine, 30),
    "stitch": (measure_stitching, 30),
    "refine": (measure_refinement, 90),
    "reconstruct": (measure_reconstruction, 150),
    "export": (measure_exports, 90),
    "prior": (measure_prior, 30),
    "train": (measure_training, 60),
    "live": (measure_live, 60),
    "memory": (measure_memory, 60),
    "determinism": (measure_determinism, 60),
}
"""Each part, and the seconds that it may take."""


def run_part(name: str, emulated: bool) -> None:
    """Run one part in this process; print a line of JSON for each figure."""
    # Rows are printed as they are found, so that those before a crash are kept.
    measure, _ = PARTS[name]
    with contextlib.ExitStack() as stack:
        if emulated and name != "tests":
            sys.path.insert(0, str(ROOT / "tests"))
            from emulated_cuda import emulated_cuda

            stack.enter_context(emulated_cuda())
        for row in measure(SMALL if emulated else FULL):
            print(f"ROW {json.dumps(row)}", flush=True)


def collect_part(name: str, emulated: bool, deadline_s: float) -> list[Row]:
    """Run one part in a process of its own; return its figures, and the error it ended with."""
    command = [sys.executable, __file__, "--part", name, *(["--emulated"] if emulated else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, start_new_session=True)
        try:
            code: int | None = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = None
        out.seek(0)
        err.seek(0)
        rows = [json.loads(line[4:]) for line in out if line.startswith("ROW ")]
        if code is None:
            rows.append({"what": "the rest", "error": f"did not end within {deadline_s:g} s"})
        elif code:
            lines = [line.strip() for line in err if line.strip()]
            rows.append({"what": "the rest", "error": lines[-1] if lines else f"exit code {code}"})
    return [{"part": name, **row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--emulated", action="store_true", help="small, on the emulated device of the tests")
    parser.add_argument("--slower", type=float, default=1.0, help="factor of the time that each part may take")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        run_part(given.part, given.emulated)
        return
    import torch

    if not given.emulated and not torch.cuda.is_available():
        raise SystemExit(
            "gpu.py: expected a CUDA device; torch finds none. Use --emulated to try the calls without one."
        )
    rows: list[Row] = []
    for name in given.parts:
        begin = time.perf_counter()
        found = collect_part(name, given.emulated, PARTS[name][1] * given.slower)
        rows += found
        print(f"== {name}, {time.perf_counter() - begin:.0f} s", flush=True)
        for row in found:
            figure = row["error"] if "error" in row else f"{row['value']:.4g} {row['unit']}"
            print(f"   {row['what']}: {figure}")
    failed = sum("error" in row or row.get("unit") == "failure" for row in rows)
    print(f"{len(rows)} figures, {failed} of them failures")
    if not given.emulated:
        out = Path(given.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        with (out / "gpu.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["part", "what", "value", "unit", "error"])
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
