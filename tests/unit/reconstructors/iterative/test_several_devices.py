"""A refinement shared by several processes: the same image as of one, whatever happens to them."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import tolerance

from torchptycho.cli.app import main
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, StoreError, TorchptychoError
from torchptycho.core.geometry import Geometry
from torchptycho.core.launched import find_launched_process
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan, write_scan
from torchptycho.io.frames.shared_frames import SharedFrames, share_frames
from torchptycho.reconstructors.iterative import frame_source, job, processes, refine, refinement, shares
from torchptycho.reconstructors.iterative.frame_source import plan_frames
from torchptycho.reconstructors.iterative.problem import open_problem
from torchptycho.reconstructors.iterative.reducer import ONE_PROCESS, OneProcess, Reducer
from torchptycho.reconstructors.iterative.shares import assign_frames, count_useful_processes
from torchptycho.reconstructors.resolution import resolution

QUICK = RefineConfig(epochs=3, batch_size=16, patience=None, position_start_epoch=1)
ALL = {"n_modes": 2, "background": True, "position_update": "both"}


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that begin at once, with what a test has changed in this one."""
    monkeypatch.setattr(processes, "_START_METHOD", "fork")


@pytest.fixture(scope="module")
def scan() -> Scan:
    made = simulate(
        SimulateConfig(
            n_px=16, object_px=52, n_frames=48, photons_per_frame=1e5, simulation_seed=3, probe_defocus_waves=0.5
        )
    )
    places = made.positions_px.copy()
    places[20] += 4.0  # a frame that is looked for elsewhere
    # Lengths are needed for slices alone.
    geometry = Geometry(energy_eV=1e4, object_pixel_m=1e-8)
    return dataclasses.replace(made, positions_px=places, geometry=geometry)


def distance(found: np.ndarray | None, wanted: np.ndarray | None) -> float:
    assert found is not None
    assert wanted is not None
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def check_same(found: Reconstruction, wanted: Reconstruction) -> None:
    for name in ("object", "probe", "positions_px", "background", "frame_scale"):
        if getattr(wanted, name) is not None:
            assert distance(getattr(found, name), getattr(wanted, name)) < tolerance("processes"), name
    for name in ("misfit", "residual", "unexplained"):
        assert found.history[name] == pytest.approx(wanted.history[name], rel=1e-4), name


class TestSameImage:
    @pytest.mark.contract("refine.processes.same")
    @pytest.mark.parametrize(
        ("options", "devices"),
        [
            ({"method": "rpie"} | ALL, 2),
            ({"method": "lsqml"} | ALL, 2),
            ({"method": "gradient"} | ALL, 2),
            ({"method": "lsqml", "opr_modes": 2, "frame_scale": True, "opr_start_epoch": 1}, 2),
            ({"method": "gradient", "opr_modes": 2, "frame_scale": True, "opr_start_epoch": 1}, 2),
            ({"method": "rpie", "batch_size": 32, "position_update": "affine", "likelihood": "amplitude"}, 4),
            ({"method": "lsqml", "probe_update": False, "smoothness_weight": 0.01}, 2),
            ({"method": "gradient", "tv_weight": 0.01, "position_update": "affine"}, 2),
            ({"method": "gradient", "optimizer": "lbfgs", "epochs": 2, "smoothness_weight": 0.01}, 2),
            ({"regularization": "tv", "regularization_strength": 0.1, "polish": 0.7}, 2),
            ({"method": "lsqml", "n_slices": 2, "slice_spacing_m": 1e-5, "position_update": "frames"}, 2),
        ],
        ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
    )
    def test_is_found_by_any_number_of_processes(self, options: dict[str, Any], devices: int, scan: Scan) -> None:
        config = dataclasses.replace(QUICK, **options)
        # First, so that the processes begin with what this one has imported.
        one = refine(scan, config=config, device="cpu")
        seen: list[int] = []
        found = refine(scan, config=config, device="cpu", devices=devices, on_epoch=lambda epoch, _: seen.append(epoch))
        check_same(found, one)
        assert seen == list(range(1, config.epochs + 1))

    @pytest.mark.contract("refine.processes.same")
    def test_is_found_by_processes_that_begin_anew(self, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(processes, "_START_METHOD", "spawn")
        config, shown = dataclasses.replace(QUICK, epochs=2), []
        more: dict[str, Any] = {"on_image": shown.append, "image_every_epochs": 1}
        found = refine(scan, config=config, device="cpu", devices=2, **more)
        check_same(found, refine(scan, config=config, device="cpu"))
        assert [len(image.history["misfit"]) for image in shown] == [1]

    @pytest.mark.contract("refine.processes.same")
    @pytest.mark.parametrize("method", ["rpie", "lsqml", "gradient"])
    def test_does_not_need_a_frame_of_each_process_in_a_batch(
        self, method: Any, scan: Scan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shares, "MIN_FRAMES_PER_PROCESS", 1)
        config = dataclasses.replace(QUICK, method=method, batch_size=2, epochs=1)
        check_same(refine(scan, config=config, device="cpu", devices=2), refine(scan, config=config, device="cpu"))

    @pytest.mark.contract("refine.processes.windows")
    @pytest.mark.parametrize("method", ["rpie", "lsqml"])
    def test_sums_go_to_the_others_where_frames_lie(
        self, method: Any, scan: Scan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wide = dataclasses.replace(scan, positions_px=4 * scan.positions_px, truth=None)
        config = dataclasses.replace(QUICK, method=method, epochs=2, polish=0.0)
        one = refine(wide, config=config, device="cpu")
        monkeypatch.setattr(refinement, "run_epoch", count_values_sent(refinement.run_epoch))
        found = refine(wide, config=config, device="cpu", devices=2)
        check_same(found, one)
        canvas = found.object.size
        # Three numbers for each pixel of 16 frames that hardly overlap here, once per update of three.
        sent = found.history["sent"][-1] / 3
        assert 3 * 16 * 15**2 < sent < 3 * 16 * 18**2 < 2 * canvas

    @pytest.mark.contract("refine.processes.frames")
    @pytest.mark.parametrize("form", ["memory", "array", "file", "copy"])
    def test_each_process_keeps_its_own_frames_wherever_they_are(
        self, form: str, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = dataclasses.replace(QUICK, epochs=2)
        one = refine(scan, config=config, device="cpu")
        elsewhere = scan
        if form != "memory":
            monkeypatch.setattr(frame_source, "MAX_MEMORY_BYTES", 0)
        if form in ("file", "copy"):
            (np.savez if form == "file" else np.savez_compressed)(
                tmp_path / "scan.npz",
                diffraction=scan.frames[:],
                ycoords=scan.positions_px[:, 0],
                xcoords=scan.positions_px[:, 1],
                probeGuess=scan.probe[0],
            )
            elsewhere = dataclasses.replace(scan, frames=read_scan(tmp_path / "scan.npz").frames)
        found = refine(elsewhere, config=config, device="cpu", devices=2, scratch=tmp_path)
        check_same(found, one)
        assert not list(tmp_path.glob(".torchptycho-*"))

    @pytest.mark.contract("refine.processes.frames")
    def test_no_process_can_load_the_frames_of_another(self, scan: Scan) -> None:
        class Second(OneProcess):
            rank, size = 1, 3

        with open_problem(scan, reducer=Second()) as problem, open_problem(scan) as whole:
            assert problem.is_own is not None
            assert problem.frames.shape[0] == int(problem.is_own.sum()) == 16
            assert problem.n_frames == 48
            batches = torch.arange(48).split(10)
            for batch, (index, counts) in zip(batches, problem.iterate_counts(batches), strict=True):
                assert torch.equal(index, batch[problem.is_own[batch]])
                assert torch.equal(counts, whole.load_counts(index))


def count_values_sent(run_epoch: Any) -> Any:
    """An epoch whose `history` holds how many numbers this process has sent in sums so far."""

    def run(problem: Any, state: Any, *given: Any, **more: Any) -> Any:
        reducer, plain = problem.reducer, type(problem.reducer).sum
        state.history.setdefault("sent", []).append(0)

        def count(*tensors: torch.Tensor) -> None:
            state.history["sent"][-1] += sum(
                (2 if tensor.is_complex() else 1) * tensor.numel() for tensor in tensors if tensor.ndim == 1
            )
            plain(reducer, *tensors)

        reducer.sum = count
        return run_epoch(problem, state, *given, **more)

    return run


class TestTiles:
    @pytest.mark.contract("refine.processes.frames")
    @pytest.mark.parametrize("n_processes", [1, 2, 3, 4, 7])
    def test_are_compact_and_of_equal_numbers_of_frames(self, n_processes: int) -> None:
        places = np.random.default_rng(0).uniform(0, 1, (700, 2)) * (200, 100)
        owner = assign_frames(places, n_processes)
        assert set(np.bincount(owner)) <= {700 // n_processes, -(-700 // n_processes)}
        for number in range(n_processes):
            extent = np.ptp(places[owner == number], axis=0)
            assert extent.prod() < 1.2 * 200 * 100 / n_processes
            assert extent.max() < 3.5 * extent.min()

    @pytest.mark.contract("refine.processes.few")
    def test_are_no_more_than_batches_keep_busy(self, scan: Scan, caplog: pytest.LogCaptureFixture) -> None:
        assert [count_useful_processes(8, size) for size in (1, 8, 16, 31, 64)] == [1, 1, 2, 3, 8]
        config = dataclasses.replace(QUICK, epochs=1, batch_size=8)
        with caplog.at_level(logging.WARNING):
            refine(scan, config=config, device="cpu", devices=2, judge=False)
        assert "devices: 1 of 2 used: batches of 8 of its 48 frames do not keep more busy" in caplog.text


class TestState:
    @pytest.mark.contract("refine.processes.state")
    @pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
    def test_of_some_processes_is_continued_by_others(
        self, before: int, after: int, scan: Scan, tmp_path: Path
    ) -> None:
        state = tmp_path / "state.npz"
        config = dataclasses.replace(QUICK, polish=0.0, position_update="both")
        one = refine(scan, config=dataclasses.replace(config, epochs=4), device="cpu")
        first = dataclasses.replace(config, epochs=2)
        refine(scan, config=first, device="cpu", devices=before, state_file=state)
        found = refine(
            scan,
            config=dataclasses.replace(config, epochs=4),
            device="cpu",
            devices=after,
            state_file=state,
            resume=True,
        )
        assert len(found.history["misfit"]) == 4
        check_same(found, one)

    @pytest.mark.contract("refine.processes.death")
    def test_is_whole_when_a_process_dies(self, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = tmp_path / "state.npz"
        monkeypatch.setattr(refinement, "_SAVE_EVERY_S", 0.0)
        monkeypatch.setattr(refinement, "run_epoch", at_epoch(2, 1, signal.SIGKILL, refinement.run_epoch))
        with pytest.raises(StoreError, match=r"one of the 2 processes that shared the frames ended: .*SIGKILL"):
            refine(scan, config=QUICK, device="cpu", devices=2, state_file=state)
        monkeypatch.undo()
        image = refine(scan, config=QUICK, device="cpu", state_file=state, resume=True)
        check_same(image, refine(scan, config=QUICK, device="cpu"))

    @pytest.mark.contract("refine.processes.interrupt")
    def test_and_image_are_kept_when_one_process_is_interrupted(
        self, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = tmp_path / "state.npz"
        monkeypatch.setattr(refinement, "run_epoch", at_epoch(1, 1, signal.SIGINT, refinement.run_epoch))
        image = refine(scan, config=QUICK, device="cpu", devices=2, state_file=state)
        assert not image.provenance["complete"]
        assert len(image.history["misfit"]) == 1
        monkeypatch.undo()
        assert len(refine(scan, config=QUICK, state_file=state, resume=True).history["misfit"]) == 3


def at_epoch(epoch: int, rank: int, number: signal.Signals, run_epoch: Any) -> Any:
    """An epoch before which one process is sent a signal."""

    def run(problem: Any, state: Any, *given: Any, **more: Any) -> Any:
        if (state.epoch, problem.reducer.rank) == (epoch, rank):
            os.kill(os.getpid(), number)
        return run_epoch(problem, state, *given, **more)

    return run


class TestFaults:
    @pytest.mark.contract("refine.processes.error")
    def test_the_error_of_a_process_is_that_of_the_refinement(self, scan: Scan) -> None:
        frames = scan.frames[:].astype(np.float32)
        frames[5, 3, 3] = np.nan
        bad = dataclasses.replace(scan, frames=ArrayFrames(frames))
        with pytest.raises(TorchptychoError, match="NaN or infinity in 1 frame: 5"):
            refine(bad, config=QUICK, device="cpu", devices=2)

    @pytest.mark.contract("refine.processes.error")
    def test_processes_that_see_different_scans_end(self, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
        run = job._run_job

        def run_another(given: Any, device: torch.device, reducer: Reducer, notify: Any) -> Any:
            return run(dataclasses.replace(given, digest=f"{reducer.rank}"), device, reducer, notify)

        monkeypatch.setattr(job, "_run_job", run_another)
        with pytest.raises(StoreError, match="scan: process 1 has '1', the first one '0'"):
            refine(scan, config=QUICK, device="cpu", devices=2)


class TestShared:
    @pytest.mark.contract("refine.processes.frames")
    def test_frames_in_memory_are_written_once_and_a_map_is_opened_where_it_is(
        self, scan: Scan, tmp_path: Path
    ) -> None:
        values = scan.frames[:]
        copied = share_frames(scan.frames, tmp_path / "copy")
        np.save(tmp_path / "frames.npy", values)
        mapped = ArrayFrames(np.load(tmp_path / "frames.npy", mmap_mode="r"))
        opened = share_frames(mapped, tmp_path / "unused")
        part = share_frames(ArrayFrames(mapped.array[3:]), tmp_path / "part")
        for shared, wanted in ((copied, values), (opened, values), (part, values[3:])):
            assert isinstance(shared, SharedFrames)
            assert np.array_equal(shared[:], wanted)
            assert np.array_equal(np.concatenate(list(shared.chunks(7))), wanted)
            assert np.array_equal(shared[[4, 2]], wanted[[4, 2]])
        assert not (tmp_path / "unused").exists()
        write_scan(scan, tmp_path / "scan.npz")
        in_file = read_scan(tmp_path / "scan.npz").frames
        assert share_frames(in_file, tmp_path / "unused") is in_file
        assert plan_frames(dataclasses.replace(scan, frames=copied), torch.device("cpu")).place == "memory"


TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[003-004,9],other",
}  # fmt: skip


class TestLaunched:
    @pytest.mark.contract("refine.processes.launched")
    def test_is_read_from_what_torchrun_and_srun_set(self) -> None:
        process = find_launched_process(TORCHRUN)
        assert process is not None
        assert (process.rank, process.size, process.local_rank, process.address) == (3, 8, 1, None)
        process = find_launched_process(SRUN)
        assert process is not None
        assert (process.rank, process.size, process.local_rank) == (2, 4, 0)
        assert process.address == ("gpu003", 15000 + 123456 % 10000)
        for hosts, first in (("a", "a"), ("a,b", "a"), ("n-[1-2]-ib,x", "n-1-ib"), ("n[07]", "n07")):
            found = find_launched_process(SRUN | {"SLURM_STEP_NODELIST": hosts})
            assert found is not None
            assert found.address is not None
            assert found.address[0] == first
        # In the script of a job there is one process, however many tasks it has.
        assert find_launched_process({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
        assert find_launched_process({}) is None

    @pytest.mark.contract("refine.processes.launched")
    def test_other_numbers_of_devices_are_refused(
        self, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(ConfigError, match="nodes: expected 1, or processes that torchrun or srun"):
            refine(scan, config=QUICK, device="cpu", devices=2, nodes=2)
        write_scan(scan, tmp_path / "scan.npz")
        for name, value in TORCHRUN.items():
            monkeypatch.setenv(name, value)
        for given in ([], ["--devices", "4"]):
            assert main(["refine", str(tmp_path / "scan.npz"), "--out", str(tmp_path / "out.npz"), *given]) == 1
            assert "expected 8 processes, as torchrun started" in capsys.readouterr().err

    @pytest.mark.contract("refine.processes.launched")
    def test_the_first_of_them_writes_and_reports(self, scan: Scan, tmp_path: Path) -> None:
        write_scan(scan, tmp_path / "scan.npz")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        flags = ["--epochs", "2", "--batch-size", "16", "--device", "cpu", "--devices", "2", "--json"]
        command = ["refine", str(tmp_path / "scan.npz"), "--out", str(tmp_path / "out.npz"), *flags]

        def run(rank: int) -> None:
            given = TORCHRUN | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            os.environ.update(given | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
            with (tmp_path / f"{rank}.txt").open("w") as sys.stdout:
                code = main(command)
            os._exit(code)

        context = multiprocessing.get_context("fork")
        started = [context.Process(target=run, args=(rank,)) for rank in range(2)]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
        assert [process.exitcode for process in started] == [0, 0]
        assert json.loads((tmp_path / "0.txt").read_text())["epochs"] == 2
        assert (tmp_path / "1.txt").read_text() == ""
        assert {path.name for path in tmp_path.iterdir()} == {
            "0.txt", "1.txt", "scan.npz", "out.npz", "out.png", "out.state.npz",
        }  # fmt: skip


@pytest.mark.contract("refine.processes.halves")
def test_halves_are_refined_at_the_same_time() -> None:
    scan = simulate(SimulateConfig(n_px=16, object_px=64, n_frames=128, photons_per_frame=1e5, probe_defocus_waves=0.5))
    config = dataclasses.replace(QUICK, epochs=2)
    both, one = (resolution(scan, config=config, device="cpu", devices=devices) for devices in (2, 1))
    for found, wanted in zip(both.halves, one.halves, strict=True):
        assert np.array_equal(found.object, wanted.object)
    assert both.half_period_px == one.half_period_px


@pytest.mark.contract("refine.processes.same")
def test_one_process_has_nobody_to_ask() -> None:
    values = torch.ones(3)
    ONE_PROCESS.sum(values)
    ONE_PROCESS.copy_from_first(values)
    ONE_PROCESS.check_same({"a": 1})
    assert ONE_PROCESS.share([1]) == [1]
    assert torch.equal(values, torch.ones(3))
    assert ONE_PROCESS.collect(values, torch.ones(3, dtype=torch.bool)) is values
    assert isinstance(ONE_PROCESS, Reducer)
