"""The commands `watch` and `replay`."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from live_scans import (
    ROOT,
    address,
    playing,
    process,
)
from tiny_run import Command

from torchptycho.core.config import PrepareConfig, RunConfig, save_config


@pytest.mark.contract("live.command")
def test_the_commands_tell_what_they_did(command: Command, single: Path, recorded: Path, tmp_path: Path) -> None:
    where = address()
    with playing(recorded, where, 1e5):
        answer = command(
            "watch",
            where,
            "--model",
            single,
            "--out",
            tmp_path / "live",
            "--page",
            "--page-port",
            "0",
            "--accelerator",
            "cpu",
            "--refresh-s",
            "20",
        )
    assert answer.code == 0, answer.err
    assert "http://127.0.0.1:" in answer.err
    assert "reconstruction.npz" in answer.out
    assert "from 900 frames" in answer.out
    for name in ("reconstruction.npz", "reconstruction.png", "status.json", "amplitude.png", "spool/spool.json"):
        assert (tmp_path / "live" / name).is_file()
    # By it the page knows when to expect the next word.
    assert json.loads((tmp_path / "live" / "status.json").read_text())["refresh_s"] == 20
    assert "status.refresh_s" in (ROOT / "torchptycho" / "live" / "page.html").read_text(encoding="utf-8")
    answer = command(
        "watch",
        where,
        "--model",
        single,
        "--out",
        tmp_path / "live",
        "--frames",
        "901",
        "--idle-s",
        "0.2",
        "--accelerator",
        "cpu",
    )
    assert answer.out.endswith("; 1 of 901 expected frames did not arrive\n"), answer.out
    for wrong, words in (
        (["--spool-frames", "3"], "spool_frames: expected at least 16"),
        (["--refresh-s", "0"], "refresh_s: expected 0.05"),
        (["--page-port", "99999"], "--page-port: expected 0 to 65535"),
    ):
        answer = command("watch", where, "--model", single, "--out", tmp_path / "none", *wrong)
        assert (answer.code, words in answer.err) == (1, True), answer.err
        assert not (tmp_path / "none").exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = command(
            "watch",
            where,
            "--model",
            single,
            "--out",
            tmp_path / "none",
            "--page",
            "--page-port",
            str(taken.getsockname()[1]),
        )
    assert (answer.code, "is in use" in answer.err) == (1, True), answer.err
    assert not (tmp_path / "none").exists()
    answer = command("watch", where, "--model", single, "--out", recorded)
    assert (answer.code, "out: expected a folder" in answer.err) == (1, True), answer.err
    for source, words in (
        ("http://x", "expected an HDF5 file, or an address"),
        ("tcp:/127.0.0.1:5555", "expected an HDF5 file, or an address"),
        ("tcp://127.0.0.1:70000", "expected a port from 1 to 65535; found 70000"),
    ):
        answer = command("watch", source, "--model", single, "--out", tmp_path / "none")
        assert (answer.code, words in answer.err) == (1, True), answer.err
    answer = command("watch", where, "--model", single, "--out", "/dev/null/live")
    assert (answer.code, "out: expected a folder that can be created; found /dev/null/live" in answer.err) == (1, True)
    answer = command("replay", recorded, "--hz", "0")
    assert "--hz: expected frames per second" in answer.err
    answer = command("replay", recorded, "--swmr", "/dev/null/x.cxi")
    assert (answer.code, "--swmr: expected a place that can be written to" in answer.err) == (1, True)
    answer = command("replay", recorded, "--address", "tcp://localhost")
    assert "--address: expected one that is free" in answer.err


@pytest.mark.contract("live.keys.refused")
def test_keys_on_the_command_line(command: Command, single: Path, recorded: Path, tmp_path: Path) -> None:
    names = [tmp_path / "keys" / name for name in ("source", "reader")]
    answer = command("keys", *names, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["public"] == [f"{name}.key" for name in names]
    (tmp_path / "readers").mkdir()
    shutil.copy(tmp_path / "keys" / "reader.key", tmp_path / "readers")
    where, secret = address(), tmp_path / "keys" / "reader.key_secret"
    watching = ["watch", where, "--model", single, "--out", tmp_path / "live", "--accelerator", "cpu"]
    replaying = ["replay", recorded, "--address", where, "--key", tmp_path / "keys" / "source.key_secret"]
    with process(*replaying, "--allow", tmp_path / "readers", "--hz", "1e5") as source:
        answer = command(*watching, "--key", secret, "--source-key", tmp_path / "keys" / "source.key")
        assert answer.code == 0, answer.err
        assert "from 900 frames" in answer.out
        source.communicate(20)
        assert source.returncode == 0
    for half, words in ((["--key", secret], "expected both"), (["--source-key", secret], "expected both")):
        answer = command(*watching, *half)
        assert (answer.code, words in answer.err) == (1, True), answer.err
    answer = command(*replaying)
    assert (answer.code, "--key, --allow: expected both" in answer.err) == (1, True), answer.err
    file = ["watch", "scan.cxi", "--model", single, "--out", tmp_path / "none"]
    answer = command(*file, "--key", secret, "--source-key", tmp_path / "keys" / "source.key")
    assert (answer.code, "expected a stream" in answer.err) == (1, True), answer.err
    answer = command(*file, "--page", "--page-token", tmp_path / "absent")
    assert (answer.code, "--page-token: expected a file" in answer.err) == (1, True), answer.err
    assert not (tmp_path / "none").exists()


@pytest.mark.contract("live.check")
def test_rates_are_measured_before_the_scan(command: Command, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "live"
    checking = ["watch", "dectris-v2://127.0.0.1:9", "--model", single, "--out", out, "--accelerator", "cpu"]
    answer = command(*checking, "--check", "1", "--frames", "50", "--json")
    assert answer.code == 0, answer.err
    plain = json.loads(answer.out)
    assert (plain["asked_per_s"], plain["frame_bytes"]) == (1, 32 * 32 * 4)
    assert min(plain["received"], plain["reconstructed"], plain["room"]) > 50
    assert list(out.iterdir()) == []
    save_config(RunConfig(prepare=PrepareConfig(crop_px=32)), tmp_path / "crop.yaml")
    recorded = ["--config", tmp_path / "crop.yaml", "--check-frame", "200", "260"]
    answer = command(*checking, *recorded, "--check", "1e9", "--json")
    assert (answer.code, "expected to receive 1e+09 frames per second; found" in answer.err) == (1, True), answer.err
    assert json.loads(answer.out)["received"] < plain["received"]
    for wrong, words in (
        (["--check", "1", "--frames", "1000000000000000"], "and room for"),
        (["--check", "0"], "expected frames per second, more than 0"),
        (["--check-frame", "20", "20"], "--check: expected frames per second, more than 0; found None"),
        (["--check", "1", "--check-frame", "64", "64"], "expected frames that become 32 px"),
    ):
        answer = command(*checking, *wrong)
        assert (answer.code, words in answer.err) == (1, True), answer.err
    assert list(out.iterdir()) == []
