"""Fine-tune a trained network on a new scan, and measure the improvement.

    python examples/fine_tune.py run new.npz --out runs/tuned

The new scan is reconstructed with the original and with the tuned network. Both images are compared with the scan's
ground truth if it has one, otherwise with a refinement.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torchptycho as tp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", help="checkpoint, or the folder of a run")
    parser.add_argument("scan", help="scan file")
    parser.add_argument("--out", type=Path, default=Path("runs/tuned"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--factor", type=float, default=0.2, help="of the learning rate")
    parser.add_argument("--freeze-encoder", action="store_true", help="train only the part that makes the image")
    given = parser.parse_args()

    before = tp.load_network(given.trained)
    train = tp.TrainConfig(steps=given.steps, learning_rate_factor=given.factor, freeze_encoder=given.freeze_encoder)
    # The options that the network was trained with, but for how long and how fast.
    group = dataclasses.replace(before.config.group, n_groups=None)
    config = dataclasses.replace(before.config, group=group, train=train)
    result = tp.train(given.scan, config, given.out, start=given.trained)

    scan = tp.read_scan(given.scan)
    reference = tp.refine(scan) if scan.truth is None else None
    for name, network in (("as it was", before), ("tuned", result.checkpoint)):
        image = tp.reconstruct(network, scan)
        if reference is None:
            assert scan.truth is not None
            found = tp.evaluate(image, scan.truth)
        else:
            found = tp.evaluate(image, reference.object, truth_origin_px=reference.origin_px)
        print(f"{name:>9}: mean error of phase {found.phase_mae_rad:.3f} rad, of amplitude {found.amplitude_mae:.3f}")
        tp.write_reconstruction(image, given.out / f"{name.replace(' ', '-')}.npz")


if __name__ == "__main__":
    main()
