"""What `doctor` says of an installation and of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchptycho.cli import doctor
from torchptycho.core.errors import ConfigError


@pytest.mark.contract("cli.doctor")
def test_versions_machine_disk_and_packages_are_told(tmp_path: Path) -> None:
    found = doctor.examine(tmp_path, disk_mb=2)
    assert set(found["versions"]) >= {"python", "torch", "torchptycho"}
    assert found["cpu_cores"] >= 1
    assert found["disk"]["free_GB"] > 0
    assert found["disk"]["write_MB_per_s"] > 0
    assert found["disk"]["read_MB_per_s"] > 0
    assert found["optional"]["hdf5plugin"]["installed"]
    for told in found["optional"].values():
        assert told["for"]
        assert told["get"].startswith("pip install")


@pytest.mark.contract("cli.doctor")
def test_no_file_is_left_also_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor.examine(tmp_path, disk_mb=1)
    assert not list(tmp_path.iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        doctor.examine(tmp_path, disk_mb=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.contract("cli.doctor")
def test_disk_is_left_alone_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("a file was opened"))
    assert doctor._measure_disk_speed(tmp_path, 0) == {"write_MB_per_s": None, "read_MB_per_s": None}


@pytest.mark.parametrize(("name", "megabytes", "words"), [("absent", 1, "expected a folder"), (".", -1, "--disk-mb")])
def test_wrong_arguments_are_named(tmp_path: Path, name: str, megabytes: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        doctor.examine(tmp_path / name, disk_mb=megabytes)


@pytest.mark.contract("cli.doctor")
def test_what_is_missing_is_a_problem_with_a_way_out() -> None:
    told = {
        "versions": {"torch": "not installed", "torchptycho": "not installed"},
        "gpus": [],
        "memory_available_GB": 1.0,
        "disk": {"free_GB": 0.5, "path": "/data"},
        "optional": {"hdf5plugin": {"installed": None}},
    }
    problems = " ".join(doctor._find_problems(told))
    for words in ("torch: not installed", "no GPU", "1.0 GB of memory", "0.5 GB are free under /data", "hdf5plugin"):
        assert words in problems
    fine = {
        "versions": {"torch": "2"},
        "gpus": [{"name": "x"}],
        "memory_available_GB": 64.0,
        "disk": {"free_GB": 500.0, "path": "/data"},
        "optional": {"hdf5plugin": {"installed": "7"}},
    }
    assert doctor._find_problems(fine) == []


def test_every_optional_logger_is_listed() -> None:
    from torchptycho.core.config import LogConfig

    kinds = LogConfig.__dataclass_fields__["logger"].type
    for name in ("tensorboard", "mlflow", "wandb"):
        assert name in str(kinds)
        assert any(f"--logger {name}" in what for what, _ in doctor.OPTIONAL_PACKAGES.values())
