"""The command line from end to end, on tiny data: every command writes what it says, and says what went wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import TINY, TINY_FLAGS, Command

from torchptycho.cli.command_table import COMMANDS
from torchptycho.core.config import load_config, save_config
from torchptycho.data.store import Store
from torchptycho.io import read_reconstruction, read_scan

PNG = b"\x89PNG\r\n\x1a\n"
SIMULATE = ["--n-px", "32", "--object-px", "80", "--n-frames", "30", "--photons-per-frame", "1e5"]
IN_A_PROCESS = "import sys; from torchptycho.cli.app import main; sys.exit(main())"


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(PNG)


@pytest.fixture(scope="session")
def tiny_image(tiny_run: Path, tiny_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that `reconstruct` wrote from the tiny run."""
    from torchptycho.cli.app import main

    out = tmp_path_factory.mktemp("images") / "image.npz"
    assert main(["reconstruct", str(tiny_run), str(tiny_scan), "--out", str(out), "--accelerator", "cpu"]) == 0
    return out


class TestHelp:
    @pytest.mark.contract("cli.help")
    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
    def test_overview_names_every_command(self, command: Command, arguments: list[str]) -> None:
        answer = command(*arguments)
        assert answer.code == 0
        for name in COMMANDS:
            assert f"  {name} " in answer.out

    @pytest.mark.contract("cli.help")
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("inspect", ["--plot", "--json", "--domain"]),
            ("diagnose", ["--out", "--neighbours", "--seed", "--json"]),
            ("simulate", ["--object-kind", "--photons-per-frame", "--simulation-seed", "zone_plate"]),
            ("design", ["--scan", "--resolution-m", "--object-pixel-m", "--photons-per-frame", "--plot", "--json"]),
            ("prepare", ["--out", "--config", "--gridsize", "--val-fraction"]),
            ("append", ["--val-scans", "--config"]),
            ("drop", ["--json"]),
            ("train", ["--out", "--resume", "--config", "--steps", "--generator", "--nll-weight", "--probe"]),
            ("reconstruct", ["--out", "--accelerator", "--stitch-weight", "--input-scale"]),
            ("evaluate", ["--min-coverage", "--plot", "--json"]),
            ("refine", ["--start", "--out", "--resume", "--epochs", "--method", "--position-update", "--uncertainty"]),
            ("tune", ["--out", "--over", "--trials", "--minutes", "--seed", "--resume", "--trial-epochs", "--alpha"]),
            ("resolution", ["--plot", "--json", "--epochs"]),
            ("demo", ["--out", "--steps", "--n-px"]),
            ("compare", ["--truth", "--out", "--json"]),
            ("pretrain", ["--out", "--probe-from", "--minutes", "--resume", "--workers", "--seed"]),
            ("doctor", ["--disk-mb", "--json"]),
            ("export", ["--training-scan", "--max-offset-px", "--json"]),
            ("ptychodus", ["enable", "disable", "status"]),
            (
                "watch",
                ["--model", "--out", "--spool-frames", "--idle-s", "--page", "--page-token", "--key", "--source-key"],
            ),
            ("replay", ["--hz", "--address", "--swmr", "--energy-eV", "--key", "--allow", "--json"]),
            ("keys", ["PATH", "--json"]),
        ],
    )
    def test_each_command_shows_its_options(self, command: Command, name: str, options: list[str]) -> None:
        answer = command(name, "--help")
        assert answer.code == 0
        for option in options:
            assert option in answer.out

    def test_every_command_is_tested_above(self) -> None:
        assert set(COMMANDS) == {
            "inspect",
            "diagnose",
            "convert",
            "simulate",
            "design",
            "prepare",
            "append",
            "drop",
            "train",
            "reconstruct",
            "pretrain",
            "refine",
            "tune",
            "resolution",
            "evaluate",
            "demo",
            "compare",
            "doctor",
            "ptychodus",
            "export",
            "watch",
            "replay",
            "keys",
        }

    @pytest.mark.contract("cli.help")
    def test_version_is_told(self, command: Command) -> None:
        answer = command("--version")
        assert answer.code == 0
        assert answer.out.startswith("torchptycho ")


class TestExitCodes:
    @pytest.mark.contract("cli.exit-codes")
    @pytest.mark.parametrize(
        ("typed", "meant"), [("trian", "'train'"), ("reconstuct", "'reconstruct'"), ("x", "Commands")]
    )
    def test_unknown_command_is_a_mistake_that_names_the_nearest(
        self, command: Command, typed: str, meant: str
    ) -> None:
        answer = command(typed)
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.startswith(f"torchptycho: unknown command '{typed}'.")
        assert meant in answer.err

    @pytest.mark.contract("cli.exit-codes")
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["train", "x.npz", "--out", "y", "--stps", "3"], ["--stps", "--steps"]),
            (["train", "x.npz", "--out", "y", "--steps", "many"], ["--steps", "many"]),
            (["train", "x.npz"], ["--out"]),
            (["train"], ["--out"]),
            (["inspect"], ["PATH"]),
            (["simulate", "x.npz", "--object-kind", "cat"], ["dead_leaves"]),
        ],
    )
    def test_bad_option_is_another_exit_code(self, command: Command, arguments: list[str], words: list[str]) -> None:
        answer = command(*arguments)
        assert (answer.code, answer.out) == (2, "")
        for word in words:
            assert word in answer.err

    @pytest.mark.contract("cli.exit-codes")
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["train", "--out", "absent"], "at least one scan file"),
            (["train", "x.npz", "--out", "absent", "--config"], "--config: expected a file"),
            (["train", "x.npz", "--out", "absent", "--config", "absent.yaml"], "absent.yaml: cannot be read"),
            (["train", "absent.npz", "--out", "absent"], "absent.npz: expected a file; found nothing"),
            (["reconstruct", "absent", "x.npz"], "absent: expected a checkpoint"),
            (["evaluate", "absent.npz", "x.npz"], "absent.npz: expected a file"),
            (["inspect", "absent.npz", "--frames", "7"], "frames"),
            (["reconstruct", "absent", "x.npz", "--out", "image.png"], "--out: expected a new file"),
            (["simulate", "x.txt", *SIMULATE], "expected a name that ends in"),
            (["simulate", "x.npz", *SIMULATE, "--object-px", "20"], "object"),
        ],
    )
    def test_mistake_of_the_user_is_one_line(
        self, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        answer = command(*arguments)
        assert (answer.code, answer.out) == (1, "")
        assert len(answer.err.splitlines()) == 1
        assert words in answer.err
        assert not list(tmp_path.iterdir())

    @pytest.mark.contract("cli.exit-codes")
    def test_interrupt_is_told_by_its_own_code(
        self, command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("torchptycho.models.lightning_module.PtychoPINN.training_step", interrupted)
        answer = command("train", tiny_scan, "--out", tmp_path / "run", *TINY_FLAGS)
        assert (answer.code, answer.err) == (130, "torchptycho: interrupted\n")

    @pytest.mark.contract("cli.exit-codes")
    def test_fault_of_the_program_keeps_its_traceback(
        self, command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise AssertionError("a fault of ours")

        monkeypatch.setattr("torchptycho.data.prepare.check_compatible", broken)
        with pytest.raises(AssertionError, match="a fault of ours"):
            command("prepare", tiny_scan, "--out", tmp_path / "store")

    @pytest.mark.contract("cli.exit-codes")
    @pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["trian"], 1), (["train", "--stps"], 2)])
    def test_exit_code_reaches_the_shell(self, arguments: list[str], code: int) -> None:
        done = subprocess.run([sys.executable, "-c", IN_A_PROCESS, *arguments], capture_output=True, check=False)
        assert done.returncode == code


class TestInspect:
    @pytest.mark.contract("cli.inspect")
    def test_simulated_scan_is_usable_and_drawn(self, command: Command, tmp_path: Path) -> None:
        assert command("simulate", tmp_path / "scan.npz", *SIMULATE, "--object-kind", "siemens_star").code == 0
        assert read_scan(tmp_path / "scan.npz").n_frames == 30
        answer = command("inspect", tmp_path / "scan.npz", "--plot", tmp_path / "scan.png")
        assert answer.code == 0
        assert answer.out.rstrip().endswith("usable")
        assert is_picture(tmp_path / "scan.png")

    @pytest.mark.contract("cli.json")
    def test_json_of_an_inspection_parses(self, command: Command, tiny_scan: Path) -> None:
        answer = command("inspect", tiny_scan, "--json")
        told = json.loads(answer.out)
        assert (told["n_frames"], told["n_px"], told["domain"]) == (64, 32, "counts")
        assert answer.err == ""


class TestTrain:
    @pytest.mark.contract("cli.whole-way")
    def test_prepared_store_is_trained_on_and_its_scan_reconstructed(
        self, command: Command, tiny_scan: Path, tmp_path: Path
    ) -> None:
        answer = command("prepare", tiny_scan, "--out", tmp_path / "store", "--gridsize", "1", "--val-fraction", "0.25")
        assert (answer.code, answer.err) == (0, "")
        assert "64 frames, 48 groups for training, 16 held out" in answer.out
        answer = command("train", tmp_path / "store", "--out", tmp_path / "run", *TINY_FLAGS)
        assert (answer.code, answer.err) == (0, "")
        assert "val/loss" in answer.out
        assert is_picture(tmp_path / "run" / "history.png")
        assert not (tmp_path / "run" / "store").exists()
        out = tmp_path / "image.npz"
        answer = command("reconstruct", tmp_path / "run", tiny_scan, "--out", out, "--accelerator", "cpu")
        assert (answer.code, answer.err) == (0, "")
        assert f"{out}, {tmp_path / 'image.png'}" in answer.out
        assert is_picture(tmp_path / "image.png")

    @pytest.mark.contract("cli.config")
    def test_flags_override_the_file_and_the_run_keeps_the_whole_configuration(
        self, command: Command, tiny_scan: Path, tmp_path: Path
    ) -> None:
        save_config(TINY, tmp_path / "mine.yaml")
        arguments = ["train", tiny_scan, "--out", tmp_path / "run", "--config", tmp_path / "mine.yaml"]
        assert command(*arguments, "--steps", "2", "--tv-weight", "1e-5").code == 0
        kept = load_config(tmp_path / "run" / "config.yaml")
        assert (kept.train.steps, kept.loss.tv_weight) == (2, 1e-5)
        assert (kept.train.batch_size, kept.model) == (TINY.train.batch_size, TINY.model)

    @pytest.mark.contract("cli.resume")
    def test_existing_run_is_refused_until_it_is_to_be_resumed(
        self, command: Command, tiny_run: Path, tiny_scan: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(tiny_run, run)
        answer = command("train", tiny_scan, "--out", run, *TINY_FLAGS)
        assert answer.code == 1
        assert "--resume" in answer.err
        answer = command("train", tiny_scan, "--out", run, "--resume", "--config", run / "config.yaml", "--steps", "15")
        assert (answer.code, answer.err) == (0, "")
        answer = command("train", tiny_scan, "--out", run, "--resume", "--steps", "15")
        assert answer.code == 1
        assert f"--config {run / 'config.yaml'}" in answer.err

    @pytest.mark.contract("cli.whole-way")
    def test_store_prepared_with_another_option_is_refused(
        self, command: Command, tiny_scan: Path, tmp_path: Path
    ) -> None:
        assert command("prepare", tiny_scan, "--out", tmp_path / "store", "--val-fraction", "0.25").code == 0
        answer = command("train", tmp_path / "store", "--out", tmp_path / "run", *TINY_FLAGS, "--val-fraction", "0.5")
        assert answer.code == 1
        assert "val_fraction" in answer.err
        assert "was prepared with 0.25; found 0.5" in answer.err
        assert not (tmp_path / "run").exists()


class TestReconstruct:
    @pytest.mark.contract("cli.provenance")
    def test_image_file_tells_configuration_checkpoint_and_versions(
        self, tiny_image: Path, tiny_run: Path, tiny_scan: Path
    ) -> None:
        image = read_reconstruction(tiny_image)
        told = image.provenance
        assert told["config"]["train"]["steps"] == TINY.train.steps
        assert told["checkpoint"] == str(tiny_run / "checkpoints" / "best.ckpt")
        assert int(told["checkpoint_sha256"], 16) > 0
        assert told["source"] == str(tiny_scan)
        assert set(told["versions"]) >= {"torchptycho", "torch", "lightning"}
        assert image.valid.any()
        assert np.isfinite(image.object).all()

    @pytest.mark.contract("cli.bad-input.nothing-written")
    def test_scan_of_another_size_is_refused(self, command: Command, tiny_run: Path, tmp_path: Path) -> None:
        other = [*SIMULATE, "--n-px", "64", "--object-px", "120", "--n-frames", "6"]
        assert command("simulate", tmp_path / "scan.npz", *other).code == 0
        answer = command("reconstruct", tiny_run, tmp_path / "scan.npz", "--out", tmp_path / "image.npz")
        assert answer.code == 1
        assert "expected 32x32 frames of counts" in answer.err
        assert [path.name for path in tmp_path.iterdir()] == ["scan.npz"]


class TestRefine:
    @pytest.mark.contract("cli.refine")
    def test_a_scan_is_refined_from_nothing_and_goes_on_later(
        self, command: Command, tiny_scan: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "refined.npz"
        arguments = ["refine", tiny_scan, "--out", out, "--device", "cpu", "--polish", "0", "--n-modes", "2"]
        answer = command(*arguments, "--epochs", "3", "--position-update", "frames", "--background")
        assert (answer.code, answer.err) == (0, "")
        assert "after 3 epochs" in answer.out
        answer = command(*arguments, "--epochs", "5", "--position-update", "frames", "--background", "--resume")
        assert (answer.code, answer.err) == (0, "")
        image = read_reconstruction(out)
        assert image.probe is not None
        assert image.probe.shape == (2, 32, 32)
        assert image.positions_px is not None
        assert image.positions_px.shape == (64, 2)
        assert image.background is not None
        assert len(image.history["misfit"]) == 5
        assert is_picture(out.with_suffix(".png"))

    @pytest.mark.contract("refine.hopeless")
    def test_a_hopeless_fit_ends_with_a_warning(
        self, command: Command, tiny_scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        out = tmp_path / "turned.npz"
        answer = command("refine", tiny_scan, "--out", out, "--epochs", "20", "--swap-xy", "--json", "--report")
        assert answer.code == 0
        told = json.loads(answer.out)
        warning, *_ = told["warnings"]
        assert warning.startswith(f"{tiny_scan}: the fit leaves ")
        assert told["unexplained"] > 0.2
        assert 0 < told["residual"] < 1
        assert warning in caplog.text
        page = out.with_suffix(".html").read_text(encoding="utf-8")
        assert "variation between frames unexplained" in page
        assert "ariation between frames unexplained" in page

    @pytest.mark.contract("cli.refine")
    def test_a_trained_network_s_image_is_refined(
        self, command: Command, tiny_run: Path, tiny_scan: Path, tiny_image: Path, tmp_path: Path
    ) -> None:
        together, apart = tmp_path / "together.npz", tmp_path / "apart.npz"
        answer = command("reconstruct", tiny_run, tiny_scan, "--out", together, "--refine", "4")
        assert (answer.code, answer.err) == (0, "")
        answer = command("refine", tiny_scan, "--start", tiny_image, "--out", apart, "--epochs", "4")
        assert (answer.code, answer.err) == (0, "")
        for path in (together, apart):
            told = json.loads(command("evaluate", path, tiny_scan, "--json").out)
            before = json.loads(command("evaluate", tiny_image, tiny_scan, "--json").out)
            assert told["complex_nrmse"] < before["complex_nrmse"]
        assert read_reconstruction(together).provenance["refinement"]["epochs"] == 4

    @pytest.mark.contract("cli.refine")
    def test_what_is_no_number_of_epochs_is_refused(self, command: Command, tiny_run: Path, tiny_scan: Path) -> None:
        answer = command("reconstruct", tiny_run, tiny_scan, "--refine", "-1")
        assert answer.code == 1
        assert "--refine: expected a number of epochs" in answer.err

    @pytest.mark.contract("cli.resolution")
    def test_resolution_is_told_without_a_truth(self, command: Command, tiny_scan: Path, tmp_path: Path) -> None:
        plot = tmp_path / "frc.png"
        answer = command("resolution", tiny_scan, "--epochs", "8", "--plot", plot, "--json")
        assert (answer.code, answer.err) == (0, "")
        assert json.loads(answer.out)["half_period_px"] > 0.9
        assert is_picture(plot)
        assert "half period" in command("resolution", tiny_scan, "--epochs", "2").out

    @pytest.mark.contract("training.bootstrap")
    def test_the_probe_is_made_good_before_training(self, command: Command, tiny_scan: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        arguments = ["train", tiny_scan, "--out", run, *TINY_FLAGS, "--bootstrap-probe", "3", "--bootstrap-positions"]
        assert command(*arguments).code == 0
        found, store = read_reconstruction(run / "bootstrap.npz"), Store.open(run / "store")
        assert found.probe is not None
        np.testing.assert_array_equal(store.tensors["probes"][0].numpy(), found.probe)
        assert found.positions_px is not None
        np.testing.assert_array_equal(store.tensors["positions_px"].numpy(), found.positions_px)
        # Resumed, it is read and not computed again, so that the store is still that of its scan.
        made = (run / "bootstrap.npz").stat().st_mtime_ns
        assert command(*arguments, "--resume", "--steps", "14").code == 0
        assert (run / "bootstrap.npz").stat().st_mtime_ns == made


class TestEvaluate:
    @pytest.mark.contract("cli.json")
    def test_json_of_an_evaluation_parses(self, command: Command, tiny_image: Path, tiny_scan: Path) -> None:
        answer = command("evaluate", tiny_image, tiny_scan, "--json")
        assert (answer.code, answer.err) == (0, "")
        told = json.loads(answer.out)
        assert 0 < told["complex_nrmse"] < 1
        assert told["n_pixels"] > 100

    @pytest.mark.contract("cli.evaluate")
    def test_table_and_picture_compare_with_the_truth(
        self, command: Command, tiny_image: Path, tiny_scan: Path, tmp_path: Path
    ) -> None:
        answer = command("evaluate", tiny_image, tiny_scan, "--plot", tmp_path / "compared.png")
        assert (answer.code, answer.err) == (0, "")
        assert "phase_ssim" in answer.out
        assert is_picture(tmp_path / "compared.png")

    @pytest.mark.contract("cli.evaluate")
    def test_truth_compared_with_itself_has_no_error(self, command: Command, tiny_scan: Path) -> None:
        told = json.loads(command("evaluate", tiny_scan, tiny_scan, "--json").out)
        assert told["complex_nrmse"] < 1e-6

    @pytest.mark.contract("compare.truth")
    @pytest.mark.contract("files.reconstruction.unmeasured")
    def test_the_same_image_with_and_without_coverage_is_judged_alike(
        self, command: Command, tiny_image: Path, tiny_scan: Path, tmp_path: Path
    ) -> None:
        image = read_reconstruction(tiny_image)
        covered = image.valid & (image.coverage > 0.1)
        np.savez(tmp_path / "theirs.npz", object=np.where(covered, image.object, 0), origin_px=image.origin_px)
        own = json.loads(command("evaluate", tiny_image, tiny_scan, "--json").out)
        found = json.loads(command("evaluate", tmp_path / "theirs.npz", tiny_scan, "--json").out)
        assert found["n_pixels"] == own["n_pixels"]
        assert found["complex_nrmse"] == pytest.approx(own["complex_nrmse"], rel=0.02)
        assert f"{int((~covered).sum())} of {covered.size} pixels are not valid" in found["notes"][0]
        arguments = ["--truth", tiny_scan, "--out", tmp_path / "c.png", "--json"]
        both = json.loads(command("compare", tiny_image, tmp_path / "theirs.npz", *arguments).out)["metrics"]
        judged = [values for name, values in both.items() if name.endswith("against truth")]
        assert judged[0]["n_pixels"] == judged[1]["n_pixels"]
        assert judged[1]["complex_nrmse"] == pytest.approx(judged[0]["complex_nrmse"], rel=0.02)


class TestDemo:
    @pytest.mark.contract("cli.demo")
    def test_demo_goes_the_whole_way_and_replaces_only_its_own(self, command: Command, tmp_path: Path) -> None:
        out = tmp_path / "demo"
        arguments = ["demo", "--out", out, *["--steps", "4", "--n-frames", "60", "--n-px", "32", "--object-px", "96"]]
        answer = command(*arguments)
        assert (answer.code, answer.err) == (0, "")
        assert is_picture(out / "overview.png")
        assert "overview.png" in (out / "report.md").read_text()
        told = json.loads((out / "demo.json").read_text())
        assert told["metrics"]["refined"]["complex_nrmse"] < told["metrics"]["network"]["complex_nrmse"]
        assert [step["name"] for step in told["steps"]][-1] == "draw"
        for name in (
            "scan.npz",
            "scan.png",
            "image.npz",
            "image.png",
            "refined.npz",
            "refined.png",
            "frc.png",
            "report.html",
        ):
            assert (out / name).is_file(), name

    @pytest.mark.contract("cli.demo")
    def test_folder_of_something_else_is_left_alone(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        answer = command("demo", "--out", tmp_path)
        assert answer.code == 1
        assert "not an earlier demo" in answer.err
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.contract("cli.demo")
    def test_earlier_demo_survives_a_wrong_option(self, command: Command, tmp_path: Path) -> None:
        out = tmp_path / "demo"
        out.mkdir()
        (out / "demo.json").write_text("{}")
        (out / "old.txt").write_text("from the demo before")
        answer = command("demo", "--out", out, "--n-px", "32", "--object-px", "20")
        assert answer.code == 1
        assert (out / "old.txt").exists()
