"""Time of a training step by its parts, compared with the oracle's step with the same network and a lower bound.

    python benchmarks/train.py --n-px 64 128 --gridsize 1 2 --threads 2 --out benchmarks/results

Runs on the CPU and, where there is one, on the GPU. Each row is one network, frame size and gridsize:

- load: a batch of groups gathered from the store
- network, physics: their forward passes; physics is merging, diffraction and likelihood
- physics backward, network backward: the gradient down to the patches, and from there to the weights
- optimiser: Adam, with the norm of the gradient
- step: the whole step, which may differ from the sum of the parts
- bound: the bytes that the physics must move at least (`count_physics_bytes`), divided by the bandwidth of a copy
- bf16-mixed computes the network in bfloat16 and the physics in float32
- oracle: the same step of tf_reference in float32, as a graph and unchanged, in a separate process with as many threads

Medians over the repetitions. Writes train.csv. The oracle's columns are empty without the extra `oracle`, and on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("load", "network", "physics", "physics backward", "network backward", "optimiser", "step")


def measure_median_ms(run: Callable[[], Any], repetitions: int, wait: Callable[[], None] = lambda: None) -> float:
    """Median time of a call in milliseconds, after one that does not count."""
    run()
    times = []
    for _ in range(repetitions):
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def count_physics_bytes(frames: int, n_px: int, gridsize: int) -> int:
    """What forward and backward physics must move at least, one mode, everything that fits between two FFTs fused.

    Per pixel of a frame, 8 bytes a complex number. Forwards: patch in and wave out (16), wave in, counts in, wave kept
    (20). Backwards: wave and counts in, gradient out (20), gradient in, gradient of the patch out (16). Groups of
    several frames: each patch to its canvas and back, both ways (4 x 16).
    """
    per_pixel = 16 + 20 + 20 + 16 + (64 if gridsize > 1 else 0)
    return per_pixel * frames * n_px**2


def measure_copy_bandwidth(device: Any) -> float:
    """Bandwidth of copying 256 MB, counted once for reading and once for writing."""
    import torch

    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    return 2 * source.nbytes / (measure_median_ms(lambda: target.copy_(source), 5, wait) / 1e3)


def measure_parts(
    generator: str, precision: str, n_px: int, gridsize: int, frames: int, device: str, repetitions: int
) -> dict[str, float]:
    """Milliseconds of the parts of one step of the product."""
    import torch

    from torchptycho.core.config import GroupConfig, ModelConfig, RunConfig, SimulateConfig
    from torchptycho.data.datasets import GroupDataset
    from torchptycho.data.prepare import prepare
    from torchptycho.data.simulation import simulate
    from torchptycho.models.lightning_module import PtychoPINN

    config = RunConfig(group=GroupConfig(gridsize=gridsize), model=ModelConfig(generator=generator))
    scan = simulate(SimulateConfig(n_px=n_px, object_px=2 * n_px + 64, n_frames=max(400, 2 * frames)))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with tempfile.TemporaryDirectory() as folder:
        store = prepare([scan], config, Path(folder) / "store")
        data = GroupDataset(store, "train")
        rng = np.random.default_rng(0)

        def load() -> Any:
            rows = rng.choice(len(data), frames // gridsize**2, replace=False)
            return data.__getitems__(rows.tolist()).to(device)

        torch.manual_seed(0)
        module = PtychoPINN.for_store(store, config).to(device)
        weights = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=1e-4, betas=(0.9, 0.95))
        batch = load()
        kept: dict[str, Any] = {}

        def half() -> Any:
            return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")

        def network() -> None:
            with half():
                kept["patches"] = module(batch)

        def physics(patches: Any) -> Any:
            return module._compute_loss_terms(patches, batch)["loss"]

        leaf = module(batch).detach().requires_grad_()

        def forward() -> None:
            kept["loss"] = physics(leaf)

        def backward() -> None:
            leaf.grad = None
            kept["loss"].backward(retain_graph=True)

        def network_backward() -> None:
            optimizer.zero_grad()
            kept["patches"].backward(leaf.grad, retain_graph=True)

        def update() -> None:
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()

        def step() -> None:
            fresh = load()
            optimizer.zero_grad()
            with half():
                loss = module._evaluate_loss(fresh)["loss"]
            loss.backward()
            update()

        calls = (load, network, forward, backward, network_backward, update, step)
        return {name: measure_median_ms(call, repetitions, wait) for name, call in zip(PARTS, calls, strict=True)}


def measure_oracle_step(n_px: int, gridsize: int, frames: int, threads: int, repetitions: int) -> dict[str, float]:
    """Milliseconds of the oracle's step with the same shapes: as a graph, and as it stands. Runs in its own process."""
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    # Without the graph optimiser: it breaks the gradient of the oracle's canvas, whose size depends on the batch.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    import tf_reference as oracle

    rng = np.random.default_rng(0)
    groups = frames // gridsize**2
    inputs = rng.random((groups, n_px, n_px, gridsize**2), dtype=np.float32)
    positions = rng.uniform(-2, 2, (groups, 1, 2, gridsize**2)).astype(np.float32)
    probe = oracle.set_probe(oracle.get_default_probe(n_px).astype(np.complex64), 4.0)
    model = oracle.create_compiled_model(gridsize, n_px, probe=probe, intensity_scale=1.0)
    objects = np.zeros((groups, n_px, n_px, 1), np.float32)
    batch = ((inputs, positions), (objects, inputs, inputs**2))
    tensors = tf.nest.map_structure(tf.constant, batch)
    model._step(batch)  # makes the optimiser's variables
    graph = tf.function(model._step)
    return {
        "oracle, graph": measure_median_ms(lambda: float(graph(tensors)["loss"]), repetitions),
        "oracle": measure_median_ms(lambda: float(model._step(batch)["loss"]), max(2, repetitions // 2)),
    }


def run_in_process(*arguments: object) -> dict[str, float]:
    """Run `measure_oracle_step` in a process without torch threads; return nothing if TensorFlow is missing."""
    command = [sys.executable, __file__, "--oracle", *(str(argument) for argument in arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(f"no oracle: {answer.stderr.strip().splitlines()[-1] if answer.stderr else answer.returncode}")
        return {}
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def measure_rows(
    device: str,
    generator: str,
    n_px: int,
    gridsize: int,
    frames: int,
    given: argparse.Namespace,
    bandwidth: float,
) -> Iterator[dict[str, Any]]:
    oracle = {}
    if generator == "cnn" and device == "cpu" and not given.no_oracle:
        oracle = run_in_process(n_px, gridsize, frames, given.threads or 0, given.repetitions)
    for precision in given.precision:
        parts = measure_parts(generator, precision, n_px, gridsize, frames, device, given.repetitions)
        yield make_row(device, generator, precision, n_px, gridsize, frames, parts, oracle, bandwidth)


def make_row(
    device: str,
    generator: str,
    precision: str,
    n_px: int,
    gridsize: int,
    frames: int,
    parts: dict[str, float],
    oracle: dict[str, float],
    bandwidth: float,
) -> dict[str, Any]:
    bound_ms = 1e3 * count_physics_bytes(frames, n_px, gridsize) / bandwidth
    physics_ms = parts["physics"] + parts["physics backward"]
    row: dict[str, Any] = {
        "device": device,
        "generator": generator,
        "precision": precision,
        "n_px": n_px,
        "gridsize": gridsize,
        "frames": frames,
    }
    row |= {f"{name} (ms)": round(value, 3) for name, value in parts.items()}
    row |= {
        "frames/s": round(1e3 * frames / parts["step"], 1),
        "physics of step": round(physics_ms / parts["step"], 4),
        "bound (ms)": round(bound_ms, 3),
        "physics over bound": round(physics_ms / bound_ms, 2),
    }
    for name in ("oracle, graph", "oracle"):
        row[f"{name} (ms)"] = round(oracle[name], 3) if name in oracle else ""
        row[f"times {name}"] = round(oracle[name] / parts["step"], 2) if name in oracle else ""
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-px", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--gridsize", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--generator", nargs="+", default=["cnn", "resunet"])
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--frames", type=int, default=16, help="frames per step on the CPU; 16 times as many on a GPU")
    parser.add_argument("--threads", type=int, help="of the CPU, for both; None as the libraries choose")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--no-oracle", action="store_true")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--oracle", type=int, nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.oracle:
        print(json.dumps(measure_oracle_step(*given.oracle)))
        return
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    rows = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        bandwidth = measure_copy_bandwidth(device)
        print(f"{device}: {torch.get_num_threads()} threads, a copy moves {bandwidth / 1e9:.1f} GB/s")
        frames = given.frames * (16 if device == "cuda" else 1)
        for generator in given.generator:
            for n_px in given.n_px:
                for gridsize in given.gridsize:
                    for row in measure_rows(device, generator, n_px, gridsize, frames, given, bandwidth):
                        rows.append(row)
                        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
