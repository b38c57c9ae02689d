"""The oracle is what passed: its files have the checksums that were written down, and FROZEN.md knows them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tf_reference"
AGAIN = "Run the parity tests, then `make freeze`, and add a line to tf_reference/FROZEN.md that says what and why."


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.contract("golden.frozen")
def test_every_file_has_the_checksum_that_was_written_down() -> None:
    written = dict(
        reversed(line.split(maxsplit=1)) for line in (FOLDER / "MANIFEST.sha256").read_text("utf-8").splitlines()
    )
    found = {path.name: checksum(path) for path in sorted(FOLDER.glob("*.py"))}
    assert written == found, AGAIN


@pytest.mark.contract("golden.frozen")
def test_the_last_change_has_a_line() -> None:
    rows = re.findall(
        r"^\| \d{4}-\d\d-\d\d \| `([0-9a-f]{12})` \| \S.* \|$", (FOLDER / "FROZEN.md").read_text("utf-8"), re.M
    )
    assert rows, "FROZEN.md: expected rows | date | `digest` | what |"
    assert rows[-1] == checksum(FOLDER / "MANIFEST.sha256")[:12], AGAIN


@pytest.mark.contract("golden.frozen")
def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    original = FOLDER / "_arrays.py"
    copy = tmp_path / original.name
    copy.write_bytes(original.read_bytes() + b"\n")
    assert checksum(copy) != checksum(original)
