"""Files of other formats on the command line: told apart, converted, cut, trained on and reconstructed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_run import TINY_FLAGS, Command

from torchptycho.core.config import SimulateConfig
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import read_scan

N, M = 48, 40
SCAN = simulate(SimulateConfig(n_px=N, object_px=110, n_frames=M, photons_per_frame=1e5, probe_diameter_px=14))
LENGTHS = ["--energy-eV", "8000", "--distance-m", "1.0", "--detector-pixel-m", "5e-5"]
PIXEL_M = 1.239841984332002e-06 / 8000 / (N * 5e-5)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Frames in HDF5, positions in a table, and a configuration that says so."""
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("entry/data", data=SCAN.frames[:], chunks=(1, N, N), compression="gzip")
    lines = [f"{x * PIXEL_M * 1e6!r}\t{y * PIXEL_M * 1e6!r}" for y, x in SCAN.positions_px.tolist()]
    (tmp_path / "raw.txt").write_text("# x_um\ty_um\n" + "\n".join(lines))
    (tmp_path / "run.yaml").write_text(
        "prepare:\n  guess_probe: true\n  mapping:\n    frames: /entry/data\n    positions_y: '{stem}.txt:y_um'\n"
        "    positions_x: '{stem}.txt:x_um'\n    positions_unit: um\n"
    )
    return tmp_path / "raw.h5"


@pytest.mark.contract("cli.mapping")
@pytest.mark.contract("cli.convert")
def test_a_mapping_of_the_configuration_reaches_every_command(raw: Path, command: Command) -> None:
    config = ["--config", raw.with_name("run.yaml")]
    told = command("inspect", raw, *config, *LENGTHS, "--json")
    assert told.code == 0, told.err
    summary = json.loads(told.out)
    assert summary["notes"][0] == "recognised as a mapping: the configuration says where it keeps what"
    answer = command("convert", raw, raw.with_name("c.npz"), *config, *LENGTHS)
    assert answer.code == 0, answer.err
    np.testing.assert_allclose(read_scan(raw.with_name("c.npz")).positions_px, SCAN.positions_px, rtol=1e-6)
    answer = command("convert", raw.with_name("c.npz"), raw.with_name("p.h5"))
    assert answer.code == 0, answer.err
    np.testing.assert_array_equal(read_scan(raw.with_name("p.h5")).frames[:], SCAN.frames[:])
    assert command("convert", raw, raw, *config).code == 1
    assert "expected a name that ends in" in command("convert", raw, raw.with_name("c.cxi"), *config, *LENGTHS).err
    answer = command("inspect", raw)
    assert answer.code == 1
    assert "section 'mapping' of a --config file" in answer.err


@pytest.mark.contract("cli.mapping")
def test_a_misspelt_entry_of_the_mapping_is_named(raw: Path, command: Command) -> None:
    config = raw.with_name("run.yaml")
    config.write_text(config.read_text().replace("positions_unit", "position_unit"))
    answer = command("inspect", raw, "--config", config)
    assert answer.code == 1
    assert "unknown key 'prepare.mapping.position_unit'. Did you mean 'prepare.mapping.positions_unit'?" in answer.err


@pytest.mark.contract("cli.reading")
def test_reconstruct_opens_a_scan_as_it_was_trained_on(raw: Path, command: Command) -> None:
    run, config = raw.with_name("run"), ["--config", raw.with_name("run.yaml")]
    options = ["--crop-px", "32", "--beam-center-px", "24", "24", "--flip-x"]
    answer = command("train", raw, "--out", run, *config, *LENGTHS, *options, *TINY_FLAGS)
    assert answer.code == 0, answer.err
    store = Store.open(run / "store")
    assert store.n_px == 32
    assert any("cut to rows 8:40, columns 8:40" in note for note in store.scans[0].notes)
    expected = SCAN.positions_px * 32 / N * [1, -1]
    np.testing.assert_allclose(store.tensors["positions_px"].numpy(), expected, rtol=1e-6)
    answer = command("reconstruct", run, raw, "--out", raw.with_name("image.npz"), "--accelerator", "cpu")
    assert answer.code == 0, answer.err
    answer = command("refine", raw, "--out", raw.with_name("r.npz"), "--epochs", "2", *config, *LENGTHS, *options)
    assert answer.code == 0, answer.err


@pytest.mark.contract("files.left-out")
def test_prepare_says_what_was_left_out(raw: Path, command: Command) -> None:
    out = raw.with_name("store")
    options = ["--crop-px", "32", "--drop-frames", "3", "7", "--gridsize", "1"]
    answer = command("prepare", raw, "--out", out, "--config", raw.with_name("run.yaml"), *LENGTHS, *options)
    assert answer.code == 0, answer.err
    assert "38 frames" in answer.out
    assert f"2 frames left out, listed in {out / 'store.json'}" in answer.out
    assert json.loads((out / "store.json").read_text())["scans"][0]["left_out"] == {
        "3": "asked for by drop_frames",
        "7": "asked for by drop_frames",
    }


@pytest.mark.contract("cli.orientation")
def test_inspect_ranks_the_orientations(tiny_scan: Path, command: Command) -> None:
    answer = command("inspect", tiny_scan, "--flip-y", "--orientation", "--json")
    assert answer.code == 0, answer.err
    ranked = json.loads(answer.out)["orientations"]
    assert len(ranked) == 8
    assert (ranked[0]["swap_xy"], ranked[0]["flip_y"], ranked[0]["flip_x"]) == (False, True, False)


@pytest.mark.contract("reading.memory")
def test_preparing_hdf5_takes_memory_that_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    """Peak of anonymous memory over that after the imports, of 1 and 6 parts of 16 MiB of compressed large frames."""
    few, many = (_peak_mib(tmp_path, parts) for parts in (1, 6))
    assert many - few < 24
    assert few < 200


def _peak_mib(tmp_path: Path, parts: int) -> float:
    rng = np.random.default_rng(0)
    path, m = tmp_path / f"{parts}.h5", 128 * parts
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("a", (m, 256, 256), "u2", chunks=(4, 256, 256), compression="lzf")
        block = rng.poisson(3, (128, 256, 256)).astype(np.uint16)
        for part in range(parts):
            frames[part * 128 : (part + 1) * 128] = block
        file["p"] = rng.uniform(0, 40, (m, 2))
    code = f"""
import re, threading, time
from pathlib import Path
from torchptycho.core.config import *
from torchptycho.data.prepare import prepare
from torchptycho.io import read_scan
def now(): return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
mapping = MappingConfig(frames="a", positions_y="p[0]", positions_x="p[1]", positions_unit="px")
config = PrepareConfig(mapping=mapping, guess_probe=True, crop_px=128)
import scipy.ndimage, scipy.spatial
before, peak, done = now(), [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], now()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
try:
    prepare([read_scan({str(path)!r}, config)], RunConfig(prepare=config), {str(tmp_path / f"store{parts}")!r})
finally:
    done.append(1); thread.join()
print(peak[0] - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
