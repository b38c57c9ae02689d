"""The benchmark of memory against the number of groups, small: what it asserts is slopes, not sizes."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
N_PX = 64
FRAME_BYTES = N_PX * N_PX * 2


def slope(out: Path, mode: str, groups: tuple[int, int]) -> float:
    """Bytes of anonymous memory per group, from a run of the benchmark in processes of their own."""
    sizes = [str(count) for count in groups]
    options = [
        "--modes",
        mode,
        "--n-px",
        str(N_PX),
        "--groups",
        *sizes,
        "--out",
        str(out),
        "--scratch",
        str(out.parent),
    ]
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "memory_scaling.py"), *options], check=True, cwd=ROOT)
    with (out / "memory_scaling.csv").open(newline="", encoding="utf-8") as file:
        first, last = (int(row["host_bytes"]) for row in csv.DictReader(file))
    assert (out / "memory_scaling.png").stat().st_size > 0
    return (last - first) / (groups[1] - groups[0])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="anonymous memory is read from Linux's /proc")
@pytest.mark.contract("data.memory.flat")
def test_a_store_takes_no_memory_per_group(tmp_path: Path) -> None:
    # Eight times the frames, and each group brings a frame of its own; what grows is the index tables' making.
    assert slope(tmp_path / "out", "torchptycho", (3000, 24_000)) < 0.1 * FRAME_BYTES


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="anonymous memory is read from Linux's /proc")
@pytest.mark.contract("golden.container.memory")
def test_the_eager_container_takes_memory_per_group(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="the oracle needs TensorFlow: pip install -e '.[oracle]'")
    # Four frames in float32 at the least, or else the benchmark sees nothing.
    assert slope(tmp_path / "out", "tf-eager", (200, 800)) > 4 * 2 * FRAME_BYTES
