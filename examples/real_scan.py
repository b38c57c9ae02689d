"""From a measured scan to an image in Python: inspect, refine, train, and compare both images with the counts.

    python examples/real_scan.py siemens-star-128.npz --out runs/star

On a CPU this takes a few minutes for 500 frames of 128x128.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torchptycho as tp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", help="scan file of any known format")
    parser.add_argument("--out", type=Path, default=Path("runs/real-scan"), help="folder of the run")
    parser.add_argument("--bootstrap-probe", type=int, default=30, help="epochs that make the probe guess good first")
    given = parser.parse_args()

    scan = tp.read_scan(given.scan)
    summary = tp.inspect_scan(scan)
    print(f"{scan.n_frames} frames of {scan.n_px}x{scan.n_px}, {summary.photons_mean:.3g} photons in a mean frame")
    for problem in summary.problems:
        print(f"! {problem}")

    config = tp.RunConfig(prepare=tp.PrepareConfig(bootstrap_probe=given.bootstrap_probe))
    network = tp.load_network(tp.train(given.scan, config, given.out).checkpoint)
    image = tp.reconstruct(network, scan)
    # What the counts can still say, from the network's image and with its probe.
    refined = tp.reconstruct(network, scan, refine_epochs=config.refine.epochs)

    for name, each in (("network", image), ("refined", refined)):
        tp.write_reconstruction(each, given.out / f"{name}.npz")
        tp.plot_reconstruction(each, given.out / f"{name}.png")
    found = tp.evaluate(image, refined.object, truth_origin_px=refined.origin_px)
    print(
        f"network against refined, mean error: phase {found.phase_mae_rad:.3f} rad, amplitude {found.amplitude_mae:.3f}"
    )
    print(f"images in {given.out}")


if __name__ == "__main__":
    main()
