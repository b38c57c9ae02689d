"""Record results that a refactoring must not change, as SHA-256, and compare with an earlier record.

    python benchmarks/fingerprint.py --write before.json
    python benchmarks/fingerprint.py --compare before.json
    python benchmarks/fingerprint.py --compare before.json --steps 20

For fixed seeds: the network's image and the refined image of the demo, the losses of ten training steps, and the final
image of a watched replay. The bytes depend on the processor and on the version of torch, so a record is
valid only for the machine that wrote it. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

import torchptycho as tp
from torchptycho.live import replay, watch


class _LossRecorder(Callback):
    """Collects the loss of each training step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.values.append(float(loss))


def hash_array(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def hash_demo(steps: int, folder: Path) -> dict[str, str]:
    """Run the steps of the demo; return the hashes of its two images."""
    scan = tp.simulate(tp.SimulateConfig())
    config = tp.RunConfig(train=tp.TrainConfig(steps=steps))
    run = tp.train(scan, config, folder / "demo", progress=False)
    image = tp.reconstruct(run.checkpoint, scan)
    refined = tp.refine(scan, image, config=config.refine)
    return {"network image": hash_array(image.object), "refined image": hash_array(refined.object)}


def hash_training(folder: Path) -> dict[str, str]:
    """Train ten steps; return the hash of their losses."""
    scan = tp.simulate(tp.SimulateConfig(object_px=160, n_frames=200, photons_per_frame=1e5))
    losses = _LossRecorder()
    config = tp.RunConfig(train=tp.TrainConfig(steps=10, on_flat="warn"))
    tp.train(scan, config, folder / "ten", progress=False, callbacks=[losses])
    return {"losses of ten steps": hash_array(np.array(losses.values[:10]))}


def hash_replay(folder: Path) -> dict[str, str]:
    """Watch a replayed scan; return the hash of the final image."""
    scan = tp.simulate(tp.SimulateConfig(object_px=160, n_frames=200, simulation_seed=3))
    address = f"ipc://{folder}/frames"
    threading.Thread(target=replay, args=(scan,), kwargs={"hz": 1e4, "address": address}, daemon=True).start()
    (folder / "live").mkdir()
    watch(address, folder / "ten" / "checkpoints" / "last.ckpt", folder / "live", progress=False)
    return {"replayed image": hash_array(tp.read_reconstruction(folder / "live" / "reconstruction.npz").object)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="JSON file to write")
    parser.add_argument("--compare", type=Path, help="JSON file to compare with")
    parser.add_argument("--steps", type=int, default=200, help="training steps of the demo; each number has a record")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hashes = {f"{key}, {given.steps} steps": value for key, value in hash_demo(given.steps, folder).items()}
        hashes |= hash_training(folder)
        hashes |= hash_replay(folder)
    print(json.dumps(hashes, indent=2))
    if given.write:
        earlier = json.loads(given.write.read_text()) if given.write.exists() else {}
        given.write.write_text(json.dumps(earlier | hashes, indent=2) + "\n")
    if given.compare:
        before = json.loads(given.compare.read_text())
        different = [key for key, value in hashes.items() if before.get(key) != value]
        print("different: " + ", ".join(different) if different else "identical")
        return int(bool(different))
    return 0


if __name__ == "__main__":
    sys.exit(main())
