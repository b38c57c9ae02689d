"""The oracle is what passed: its files have the checksums that were written down, and FROZEN.md knows them."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tf_reference"
AGAIN = "Run the parity tests, then `make freeze`, and add a line to tf_reference/FROZEN.md that says what and why."


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing(folder: Path) -> set[str]:
    """Files that are not what the manifest says, or that only one of both knows."""
    written = {
        name: digest
        for digest, name in (line.split() for line in (folder / "MANIFEST.sha256").read_text("utf-8").splitlines())
    }
    found = {path.name: checksum(path) for path in folder.glob("*.py")}
    return {name for name in written.keys() | found if written.get(name) != found.get(name)}


def last_change_is_told(folder: Path) -> bool:
    text = (folder / "FROZEN.md").read_text("utf-8")
    rows = re.findall(r"^\| \d{4}-\d\d-\d\d \| `([0-9a-f]{12})` \| \S.* \|$", text, re.M)
    return bool(rows) and rows[-1] == checksum(folder / "MANIFEST.sha256")[:12]


@pytest.mark.contract("golden.frozen")
def test_the_oracle_is_what_was_written_down() -> None:
    assert not differing(FOLDER), AGAIN
    assert last_change_is_told(FOLDER), AGAIN


@pytest.mark.contract("golden.frozen")
def test_a_changed_a_missing_and_a_new_file_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "oracle"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert not differing(folder)
    with (folder / "_arrays.py").open("a", encoding="utf-8") as file:
        file.write("\n")
    (folder / "_losses.py").unlink()
    (folder / "_more.py").write_text("", encoding="utf-8")
    assert differing(folder) == {"_arrays.py", "_losses.py", "_more.py"}
    assert last_change_is_told(folder)
    with (folder / "MANIFEST.sha256").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert not last_change_is_told(folder)
