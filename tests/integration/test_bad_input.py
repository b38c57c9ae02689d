"""A bad scan file on the command line: one line that helps, exit code 1, and nothing written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scan_files import make_cases
from tiny_run import TINY_FLAGS, Command

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.data.simulation import simulate

M, N = 12, 32
SCAN = simulate(SimulateConfig(n_px=N, object_px=64, n_frames=M, photons_per_frame=1e4))
FRAMES = SCAN.frames[:]
CXI = next(case for case in make_cases() if case.name == "cxi")
GOOD: dict[str, Any] = {
    "diffraction": FRAMES,
    "xcoords": SCAN.positions_px[:, 1],
    "ycoords": SCAN.positions_px[:, 0],
    "probeGuess": SCAN.probe,
}


def npz(*without: str, **changes: Any) -> bytes:
    target = io.BytesIO()
    np.savez_compressed(target, **{key: value for key, value in (GOOD | changes).items() if key not in without})
    return target.getvalue()


def spoiled(value: float) -> np.ndarray:
    # Halves, because whole numbers without a domain are worth a warning of their own.
    frames = FRAMES.astype(np.float32) + 0.5
    frames[3, 10, 11] = value
    return frames


def pickled() -> np.ndarray:
    payload = np.empty(M, object)
    payload[0] = os.getcwd
    return payload


def frames_of(n_px: int) -> dict[str, Any]:
    return {"diffraction": np.tile(FRAMES, (1, 2, 2))[:, :n_px, :n_px], "probeGuess": np.ones((n_px, n_px), "c8")}


# The content of the file; the key at fault, where there is one; words of what was found, and of the remedy.
CASES: dict[str, tuple[bytes, str | None, list[str]]] = {
    "missing key": (npz("probeGuess"), "probeGuess", ["--probe FILE"]),
    "misspelt key": (npz("xcoords", xcoord=GOOD["xcoords"]), "xcoords", ["Did you mean 'xcoord'?"]),
    "wrong shape": (npz(diffraction=FRAMES[0]), "diffraction", ["(32, 32)", "Reshape"]),
    "coordinates fewer than frames": (
        npz(xcoords=GOOD["xcoords"][:-1], ycoords=GOOD["ycoords"][:-1]), "xcoords", ["12 entries", "found 11"],
    ),
    "NaN counts": (npz(diffraction=spoiled(np.nan)), "diffraction", ["1 frame: 3", "Drop these frames"]),
    "negative counts": (
        npz(diffraction=FRAMES.astype(np.int32) - (np.arange(M) == 3)[:, None, None] * 40_000), "diffraction",
        ["1 frame: 3", "Drop these frames"],
    ),
    "empty file": (b"", None, ["empty file", "again"]),
    "truncated zip": (npz()[:-100], None, ["damaged or truncated", "again"]),
    "truncated frames": (npz()[:1500], None, ["again"]),
    "object array": (npz(xcoords=pickled()), "xcoords", ["not opened", "numeric array"]),
    "unsupported size": (npz(**frames_of(48)), "diffraction", ["N = 48", "rop"]),
    "probe that is not square": (npz(probeGuess=np.ones((24, 20), "c8")), "probeGuess", ["(24, 20)", "to a square"]),
    "one frame": (
        npz(diffraction=FRAMES[:1], xcoords=[40.0], ycoords=[40.0]), "diffraction", ["at least 2", "record more"],
    ),
    "frames all equal": (npz(diffraction=0 * FRAMES + FRAMES[0]), "diffraction", ["all equal", "record it again"]),
    "frames all zero": (npz(diffraction=0 * FRAMES), "diffraction", ["all zero", "record it again"]),
    "positions all equal": (
        npz(xcoords=np.ones(M), ycoords=np.ones(M)), "xcoords", ["all 12 frames", "probe that moves"],
    ),
    "positions in metres": (
        npz(xcoords=GOOD["xcoords"] * 1e-8, ycoords=GOOD["ycoords"] * 1e-8), "xcoords", ["--positions-unit"],
    ),
    "truncated HDF5": (CXI.files["scan.cxi"][:-200], None, ["truncated", "again"]),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), None, ["HDF5", "again"]),
}  # fmt: skip


def arguments_of(name: str, scan: Path, out: Path) -> list[str]:
    return [name, str(scan), "--out", str(out), *(TINY_FLAGS if name == "train" else [])]


def everything_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a bad file where nothing else is; temporary files would be seen there too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def write(case: str) -> Path:
        path = tmp_path / "scan_0042.npz"
        path.write_bytes(CASES[case][0])
        return path

    return write


@pytest.mark.contract("cli.bad-input.one-line")
@pytest.mark.contract("cli.bad-input.nothing-written")
@pytest.mark.parametrize("name", ["train", "prepare"])
@pytest.mark.parametrize("case", CASES)
def test_bad_scan_gives_one_line_and_leaves_nothing(
    command: Command, bad_file: Callable[[str], Path], tmp_path: Path, name: str, case: str
) -> None:
    path, (_, key, words) = bad_file(case), CASES[case]
    answer = command(*arguments_of(name, path, tmp_path / "runs" / "new" / "out"))
    assert answer.code == 1
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1, answer.err
    assert answer.err.startswith("torchptycho: ")
    for word in [str(path), *words, *([f"'{key}"] if key else [])]:
        assert word in answer.err
    assert "Traceback" not in answer.err
    assert everything_under(tmp_path) == ["scan_0042.npz"]


@pytest.mark.contract("cli.bad-input.nothing-written")
@pytest.mark.parametrize("name", ["train", "prepare"])
def test_good_scan_beside_a_bad_one_is_not_written_either(
    command: Command, bad_file: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    path = bad_file("NaN counts")
    (tmp_path / "good.npz").write_bytes(npz(diffraction=spoiled(0.0)))
    arguments = arguments_of(name, tmp_path / "good.npz", tmp_path / "out")
    answer = command(*arguments[:2], path, *arguments[2:])
    assert (answer.code, len(answer.err.splitlines())) == (1, 1)
    assert str(path) in answer.err
    assert everything_under(tmp_path) == ["good.npz", "scan_0042.npz"]


@pytest.mark.contract("cli.bad-input.nothing-written")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mae-weight", "1"], ["nll_weight", "mae_weight"]),
        (["--generator", "resnet"], ["generator", "resunet"]),
        (["--generator", "cnn"], ["'diffraction'", "N = 64, 128, 256", "found N = 32"]),
        (["--realspace-weight", "1"], ["realspace_weight", "no truth"]),
        (["--gridsize", "2", "--neighbor-count", "3"], ["neighbor_count 3", "4 or more"]),
        (["--n-groups", "99"], ["n_groups 99", "11 or fewer"]),
        (["--n-subsample", "99"], ["n_subsample 99"]),
        (["--probe", "absent.npz"], ["absent.npz", "nothing of that name"]),
        (["--accelerator", "abacus"], ["accelerator 'abacus'", "expected auto, cpu, gpu"]),
        (["--steps", "0"], ["'steps'", "found 0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_do_not_fit_leave_nothing_either(
    command: Command, bad_file: Callable[[str], Path], tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    (tmp_path / "good.npz").write_bytes(npz())
    answer = command(*arguments_of("train", tmp_path / "good.npz", tmp_path / "out"), *flags)
    assert (answer.code, len(answer.err.splitlines())) == (1, 1), answer.err
    for word in words:
        assert word in answer.err
    assert everything_under(tmp_path) == ["good.npz"]


@pytest.mark.contract("cli.debug")
def test_debug_lets_the_error_through(command: Command, bad_file: Callable[[str], Path], tmp_path: Path) -> None:
    path = bad_file("missing key")
    with pytest.raises(ScanError, match="probeGuess"):
        command("--debug", *arguments_of("prepare", path, tmp_path / "out"))
    with pytest.raises(ScanError, match="probeGuess"):
        command(*arguments_of("train", path, tmp_path / "out"), "--debug")
    assert everything_under(tmp_path) == ["scan_0042.npz"]


@pytest.mark.contract("cli.bad-input.one-line")
def test_in_a_process_of_its_own_nothing_else_is_printed(bad_file: Callable[[str], Path], tmp_path: Path) -> None:
    path = bad_file("NaN counts")
    code = "import sys; from torchptycho.cli.app import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments_of("train", path, tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"torchptycho: {path}: 'diffraction': expected finite values")
    assert everything_under(tmp_path) == ["scan_0042.npz"]


def test_the_good_file_that_all_bad_ones_are_made_from_is_good(command: Command, tmp_path: Path) -> None:
    (tmp_path / "good.npz").write_bytes(npz())
    with zipfile.ZipFile(tmp_path / "good.npz") as archive:
        assert archive.testzip() is None
    assert command("prepare", tmp_path / "good.npz", "--out", tmp_path / "store").code == 0
