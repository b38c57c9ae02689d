"""How long grouping takes, beside the neighbour search that no method can do without.

    python benchmarks/grouping.py --positions 10000 100000 1000000 --gridsize 2 --neighbor-count 7

The search is building the tree plus querying K + 1 neighbours of every position, in the order of the tree's leaves.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from torchptycho.config import GroupConfig
from torchptycho.grouping import group, partition


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Shortest of several runs: what is longer was spent on something else."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def search(positions_px: np.ndarray, k: int) -> object:
    tree = cKDTree(positions_px, balanced_tree=False, compact_nodes=False)
    return tree.query(positions_px[tree.indices], k=k + 1, workers=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--gridsize", type=int, default=2)
    parser.add_argument("--neighbor-count", type=int, default=7, help="K")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the shortest counts")
    parser.add_argument("--step-px", type=float, default=4.0, help="mean distance of neighbouring positions")
    options = parser.parse_args()

    config = GroupConfig(gridsize=options.gridsize, neighbor_count=options.neighbor_count)
    print(
        f"gridsize {options.gridsize}, K = {options.neighbor_count}, {os.cpu_count()} cores, min of {options.repeats}"
    )
    print(f"{'positions':>10} {'search [s]':>11} {'group [s]':>10} {'ratio':>6} {'partition [s]':>14}")
    for n in options.positions:
        positions_px = np.random.default_rng(0).uniform(0, options.step_px * n**0.5, (n, 2))
        floor = seconds(lambda p=positions_px: search(p, options.neighbor_count), options.repeats)
        whole = seconds(lambda p=positions_px: group(p, config), options.repeats)
        parts = seconds(lambda p=positions_px: partition(p, options.gridsize), min(options.repeats, 2))
        print(f"{n:>10} {floor:>11.3f} {whole:>10.3f} {whole / floor:>6.2f} {parts:>14.3f}")


if __name__ == "__main__":
    main()
