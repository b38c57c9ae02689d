"""Pages, comparisons, plans and JSON from the command line, on the tiny scan."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny_run import TINY_FLAGS, Command

from torchptycho.cli.command_table import COMMANDS
from torchptycho.core.config import RefineConfig
from torchptycho.core.scan import Scan
from torchptycho.io import read_scan
from torchptycho.reconstructors.iterative import frame_source, refine
from torchptycho.reconstructors.resolution import Resolution

IN_A_PROCESS = "import sys; from torchptycho.cli.app import main; sys.exit(main())"


@pytest.fixture(scope="module")
def refined(tiny_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page and an image of a short refinement."""
    from torchptycho.cli.app import main

    out = tmp_path_factory.mktemp("refined") / "refined.npz"
    # A scan's name behind --report is not taken for that of the page.
    given = ["refine", "--out", str(out), "--epochs", "3", "--device", "cpu", "--report", str(tiny_scan)]
    assert main(given) == 0
    return out


class TestReport:
    @pytest.mark.contract("cli.report")
    def test_refine_writes_a_page_beside_the_image(self, refined: Path) -> None:
        text = refined.with_suffix(".html").read_text(encoding="utf-8")
        for part in ("image", "patterns", "curves", "probe", "positions", "data", "configuration", "provenance"):
            assert f'<section id="{part}">' in text
        assert 'id="resolution"' not in text

    @pytest.mark.contract("cli.report")
    def test_reconstruct_shows_the_curves_of_its_run_and_the_probe_of_its_network(
        self, command: Command, tiny_run: Path, tiny_scan: Path, tmp_path: Path
    ) -> None:
        page = tmp_path / "pages" / "mine.html"
        arguments = ["reconstruct", tiny_run, tiny_scan, "--out", tmp_path / "image.npz", "--accelerator", "cpu"]
        answer = command(*arguments, "--report", page, "--json")
        assert (answer.code, answer.err) == (0, "")
        told = json.loads(answer.out)
        assert told["report"] == str(page)
        text = page.read_text(encoding="utf-8")
        for words in (
            "Training: loss",
            'id="patterns"',
            'id="probe"',
            "checkpoint, SHA-256",
            "<summary>model</summary>",
        ):
            assert words in text

    @pytest.mark.contract("cli.report")
    def test_halves_are_refined_from_the_probe_of_the_network(
        self, command: Command, tiny_run: Path, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from torchptycho.models.checkpoints import load_checkpoint
        from torchptycho.reconstructors.resolution import resolution

        seen = []

        def quick(scan: Scan, *, config: RefineConfig, device: str) -> Resolution:
            seen.append((scan.probe, device))
            return resolution(scan, config=dataclasses.replace(config, epochs=2), device=device)

        monkeypatch.setattr("torchptycho.visualization.report.run_reports.resolution", quick)
        out = tmp_path / "image.npz"
        given = ["reconstruct", tiny_run, tiny_scan, "--out", out, "--accelerator", "cpu", "--report", "--report-frc"]
        answer = command(*given)
        assert (answer.code, answer.err) == (0, "")
        module = load_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
        np.testing.assert_array_equal(seen[0][0], module.probe[0].detach().numpy())
        assert seen[0][1] == "cpu"
        assert 'id="resolution"' in out.with_suffix(".html").read_text(encoding="utf-8")

    @pytest.mark.contract("cli.report")
    def test_options_that_belong_together_are_asked_for(
        self, command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for more, words in ((["--report-frc"], "expected --report"), (["--report=x.txt"], "ends in .html")):
            answer = command("refine", tiny_scan, *more)
            assert (answer.code, answer.out) == (1, "")
            assert words in answer.err
        assert not list(tmp_path.iterdir())


class TestCompare:
    @pytest.mark.contract("cli.compare")
    def test_two_images_and_a_truth_give_a_table_and_a_picture(
        self, command: Command, refined: Path, tiny_scan: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "compare.png"
        answer = command("compare", refined, tiny_scan, "--out", out)
        assert (answer.code, answer.err) == (0, "")
        assert "complex_nrmse" in answer.out
        assert out.read_bytes().startswith(b"\x89PNG")
        answer = command("compare", refined, refined, "--truth", tiny_scan, "--out", out, "--json", "--overwrite")
        told = json.loads(answer.out)
        assert set(told["metrics"]) == {"B against A", "A against truth", "B against truth"}
        assert told["metrics"]["B against A"]["complex_nrmse"] < 1e-6


class TestDryRun:
    @pytest.mark.contract("cli.dry-run")
    def test_train_tells_what_it_would_make_and_writes_nothing(
        self, command: Command, tiny_scan: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        answer = command("train", tiny_scan, "--out", run, *TINY_FLAGS, "--val-fraction", "0.25", "--dry-run", "--json")
        assert (answer.code, answer.err) == (0, "")
        plan = json.loads(answer.out)
        assert not list(tmp_path.iterdir())
        assert (plan["frames"], plan["frames_held_out"], plan["groups"]) == (64, 16, 48)
        assert 0 < plan["store_bytes"] - 64 * 32 * 32 * 2 < 1.5e6
        assert (plan["steps"], plan["batches_per_epoch"]) == (12, 6)
        assert plan["config"]["model"]["n_filters_scale"] == 1
        answer = command("train", tiny_scan, "--out", run, *TINY_FLAGS, "--dry-run")
        assert "nothing was written" in answer.out
        assert not run.exists()

    @pytest.mark.contract("cli.dry-run")
    def test_plan_is_what_is_made(self, command: Command, tiny_scan: Path, tmp_path: Path) -> None:
        flags = ["--out", tmp_path / "store", "--gridsize", "2", "--val-fraction", "0.25", "--json"]
        plan = json.loads(command("prepare", tiny_scan, *flags, "--dry-run").out)
        assert not list(tmp_path.iterdir())
        made = json.loads(command("prepare", tiny_scan, *flags).out)
        assert (plan["frames"], plan["frames_held_out"]) == (made["frames"], made["held_out"])
        assert plan["groups"] == made["groups"]
        size = sum(file.stat().st_size for file in (tmp_path / "store").rglob("frames*"))
        assert size <= plan["store_bytes"] < size + 1.5e6

    @pytest.mark.contract("cli.dry-run")
    def test_refine_tells_where_the_frames_would_be(
        self, command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flags = ["refine", tiny_scan, "--out", tmp_path / "refined.npz", "--epochs", "1", "--dry-run"]
        plan = json.loads(command(*flags, "--json").out)
        assert (plan["frames"], plan["frames_bytes"]) == ("memory", 64 * 32 * 32 * 4)
        assert (plan["batch_size"], plan["updates_per_epoch"], plan["epochs"]) == (8, 8, 1)
        image = refine(read_scan(tiny_scan), config=RefineConfig(epochs=1), device="cpu")
        assert tuple(plan["canvas_px"]) == image.object.shape
        monkeypatch.setattr(frame_source, "MAX_MEMORY_BYTES", 0)
        answer = command(*flags)
        assert (answer.code, answer.err) == (0, "")
        assert "64 frames of 32x32 px, read from" in answer.out
        assert not list(tmp_path.iterdir())

    @pytest.mark.contract("cli.dry-run")
    def test_a_prepared_store_is_planned_with(self, command: Command, tiny_scan: Path, tmp_path: Path) -> None:
        assert command("prepare", tiny_scan, "--out", tmp_path / "store", "--gridsize", "1").code == 0
        flags = [flag for flag in TINY_FLAGS if flag != "--gridsize"][1:]
        answer = command("train", tmp_path / "store", "--out", tmp_path / "run", *flags, "--dry-run", "--json")
        plan = json.loads(answer.out)
        assert (plan["frames"], plan["store_bytes"], plan["steps"]) == (64, 0, 12)
        assert plan["config"]["group"]["gridsize"] == 1
        answer = command("train", tmp_path / "store", "--out", tmp_path / "run", *flags, "--gridsize", "3", "--dry-run")
        assert "was prepared with 1; found 3" in answer.err
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    @pytest.mark.contract("cli.dry-run")
    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--generator", "unett"], "generator"),
            (["--n-groups", "900"], "900"),
            (["--realspace-weight", "1", "--nll-weight", "0", "--frames", ":20"], ""),
            (["--resume"], ""),
            (["--probe-trainable", "--realspace-weight", "1", "--nll-weight", "0"], "depends on the detector"),
            pytest.param(
                ["--logger", "wandb"],
                "'wandb' is not installed",
                marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
            ),
            (["--devices", "3000", "--accelerator", "gpu"], "gpu"),
        ],
    )
    def test_what_training_would_refuse_is_refused(
        self, command: Command, tiny_scan: Path, tmp_path: Path, more: list[str], words: str
    ) -> None:
        answer = command("train", tiny_scan, "--out", tmp_path / "run", "--accelerator", "cpu", *more, "--dry-run")
        assert answer.code == (1 if words else 0)
        assert words in answer.err.lower()
        assert not list(tmp_path.iterdir())

    @pytest.mark.contract("cli.dry-run")
    def test_a_network_for_other_frames_is_refused_before_anything_is_written(
        self, command: Command, tiny_run: Path, tmp_path: Path
    ) -> None:
        scan = tmp_path / "scan.npz"
        assert command("simulate", "--n-px", "64", "--object-px", "120", "--n-frames", "30", scan).code == 0
        begin = ["train", scan, "--out", tmp_path / "run", *TINY_FLAGS, "--from", tiny_run]
        for more in (["--dry-run"], []):
            answer = command(*begin, *more)
            assert answer.code == 1
            assert "--from: expected a network for frames of N = 64 px; found N = 32" in answer.err
            assert [path.name for path in tmp_path.iterdir()] == [scan.name]

    @pytest.mark.contract("cli.dry-run")
    def test_another_store_is_not_planned_over(self, command: Command, tiny_scan: Path, tmp_path: Path) -> None:
        store = tmp_path / "store"
        assert command("prepare", tiny_scan, "--out", store, "--gridsize", "1").code == 0
        assert command("prepare", tiny_scan, "--out", store, "--gridsize", "1", "--dry-run").code == 0
        answer = command("prepare", tiny_scan, "--out", store, "--gridsize", "2", "--dry-run")
        assert answer.code == 1
        assert "group.gridsize (1 then, 2 now)" in answer.err
        other = tmp_path / "other.npz"
        other.write_bytes(tiny_scan.read_bytes())
        answer = command("prepare", tiny_scan, other, "--out", store, "--gridsize", "1", "--dry-run")
        assert answer.code == 1
        assert f"scan 1 ({other}) now only." in answer.err
        assert answer.err.count(str(other)) == 1

    @pytest.mark.contract("cli.dry-run")
    def test_a_place_that_cannot_be_is_not_planned_for(
        self, command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        for name in ("prepare", "train"):
            answer = command(name, tiny_scan, "--out", tmp_path / "file" / "run", "--gridsize", "1", "--dry-run")
            assert answer.code == 1
            assert f"({tmp_path / 'file'} is a file)" in answer.err
        full = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        answer = command("prepare", tiny_scan, "--out", tmp_path / "new" / "store", "--gridsize", "1", "--dry-run")
        assert answer.code == 1
        assert "bytes of free space; found 1000" in answer.err
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @pytest.mark.contract("cli.dry-run")
    def test_an_existing_run_is_not_planned_over(self, command: Command, tiny_run: Path, tiny_scan: Path) -> None:
        answer = command("train", tiny_scan, "--out", tiny_run, *TINY_FLAGS, "--dry-run")
        assert answer.code == 1
        assert "--resume" in answer.err


class TestScripts:
    @pytest.mark.contract("cli.json")
    def test_every_command_that_prints_a_result_has_json(self, command: Command) -> None:
        for name, kind in COMMANDS.items():
            if name != "ptychodus":
                assert "json" in kind.__dataclass_fields__, name  # type: ignore[attr-defined]

    @pytest.mark.contract("cli.json")
    def test_simulate_convert_train_and_refine_print_one_object_and_nothing_else(
        self, command: Command, tmp_path: Path
    ) -> None:
        scan, copy, run = tmp_path / "scan.npz", tmp_path / "copy.npz", tmp_path / "run"
        small = ["--n-px", "32", "--object-px", "80", "--n-frames", "40", "--photons-per-frame", "1e5"]
        steps = [
            (["simulate", scan, *small], ("out", str(scan))),
            (["convert", scan, copy], ("n_frames", 40)),
            (["train", scan, "--out", run, *TINY_FLAGS], ("checkpoint", str(run / "checkpoints" / "best.ckpt"))),
            (["refine", scan, "--out", tmp_path / "x.npz", "--epochs", "2", "--device", "cpu"], ("epochs", 2)),
        ]
        for arguments, (key, value) in steps:
            answer = command(*arguments, "--json")
            assert (answer.code, answer.err) == (0, "")
            assert json.loads(answer.out)[key] == value

    @pytest.mark.contract("cli.doctor")
    def test_doctor_tells_people_and_scripts(self, command: Command, tmp_path: Path) -> None:
        answer = command("doctor", tmp_path, "--disk-mb", "1")
        assert answer.code == 0
        for words in ("torch", "GPU", "torchptycho[wandb]", "MB/s"):
            assert words in answer.out
        assert json.loads(command("doctor", tmp_path, "--disk-mb", "0", "--json").out)["problems"] is not None


class TestHelp:
    @pytest.mark.contract("cli.help")
    def test_overview_fits_a_screen(self, command: Command) -> None:
        lines = command("--help").out.splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 80

    @pytest.mark.contract("cli.help")
    def test_examples_keep_their_lines_and_options_their_groups(self, command: Command) -> None:
        text = command("train", "--help").out
        assert "\n  torchptycho train scan.npz --out run\n" in text
        for group in ("prepare options", "group options", "model options", "loss options", "train options"):
            assert group in text

    @pytest.mark.contract("cli.did-you-mean")
    @pytest.mark.parametrize(
        ("arguments", "meant"),
        [
            (["train", "x.npz", "--out", "y", "--stps", "3"], "--steps"),
            (["refine", "x.npz", "--positon-update", "frames"], "--position-update"),
            (["comapre", "a", "b"], "'compare'"),
        ],
    )
    def test_a_misspelt_option_or_command_names_the_one_that_was_meant(
        self, command: Command, arguments: list[str], meant: str
    ) -> None:
        answer = command(*arguments)
        assert answer.code in (1, 2)
        assert meant in answer.err

    @pytest.mark.contract("cli.did-you-mean")
    def test_a_misspelt_key_of_the_configuration_too(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("train:\n  stps: 3\n")
        answer = command("train", "x.npz", "--out", tmp_path / "y", "--config", tmp_path / "c.yaml")
        assert "Did you mean 'train.steps'?" in answer.err


class TestCompletion:
    @pytest.mark.contract("cli.completion")
    def test_bash_completes_commands_and_options(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS, "--completion", "bash"], capture_output=True, text=True, check=True
        )
        script = tmp_path / "completion.sh"
        script.write_text(done.stdout)
        ask = (
            f"source {script}; complete -p torchptycho; f=$(complete -p torchptycho | sed 's/.*-F \\([^ ]*\\).*/\\1/');"
            'COMP_WORDS=(torchptycho comp); COMP_CWORD=1; $f; printf "%s\\n" "${COMPREPLY[@]}";'
            'COMP_WORDS=(torchptycho refine --pol); COMP_CWORD=2; COMPREPLY=(); $f; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        answer = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        # An option whose description has two lines is one answer.
        assert answer.stdout.splitlines()[1:] == ["compare", "--polish"]

    @pytest.mark.contract("cli.completion")
    @pytest.mark.parametrize(("shell", "code"), [("zsh", 0), ("fish", 0), ("cmd", 1)])
    def test_other_shells_have_a_script_or_are_refused(self, command: Command, shell: str, code: int) -> None:
        answer = command("--completion", shell)
        assert answer.code == code
        assert ("torchptycho" in answer.out) == (code == 0)
