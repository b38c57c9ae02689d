"""Messages name only options that the command at hand has."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

import pytest
from documentation_blocks import known_options
from test_bad_input import CASES
from tiny_run import TINY_FLAGS, Command

from torchptycho.cli.command_table import COMMANDS
from torchptycho.cli.remedies import adapt_logs, adapt_message, collect_options
from torchptycho.core.config import ReadConfig

PACKAGE = Path(__file__).resolve().parents[2] / "torchptycho"
OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
# Cases of bad scans whose remedies name options of reading.
BAD = ("missing key", "NaN counts", "unsupported size", "coordinates fewer than frames")
# How each command takes a scan that cannot be used.
READERS = {
    "inspect": ["SCAN"],
    "convert": ["SCAN", "new.npz"],
    "refine": ["SCAN", "--device", "cpu"],
    "resolution": ["SCAN", "--device", "cpu"],
    "prepare": ["SCAN", "--out", "store"],
    "append": ["STORE", "SCAN"],
    "train": ["SCAN", "--out", "run", *TINY_FLAGS],
    "reconstruct": ["RUN", "SCAN", "--accelerator", "cpu"],
    "replay": ["SCAN", "--swmr", "new.cxi"],
    "evaluate": ["SCAN", "SCAN"],
    "compare": ["SCAN", "SCAN"],
}


def find_options(text: str) -> set[str]:
    """The options that a text names, but for those of other commands, which stand in backticks."""
    return set(OPTION.findall(re.sub(r"`[^`]*`", "", text)))


def iterate_texts() -> list[str]:
    """Every text of the package that names an option, with a word in the place of each value."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "value" for part in node.values)
            if OPTION.search(text) and "\n" not in text:
                found.append(text)
    return found


@pytest.mark.contract("cli.remedies")
def test_options_of_a_command_are_those_of_its_help(command: Command) -> None:
    for name in ("train", "reconstruct", "watch", "append"):
        kind = COMMANDS[name]
        shown = find_options(command(name, "--help").out)
        typed = collect_options(kind)
        assert shown & known_options() - {"--orientation"} <= typed, name
        assert {option for option in typed if not option.startswith("--no-")} <= shown | {
            "--debug", "--version", "--completion",
        }, name  # fmt: skip


@pytest.mark.contract("cli.remedies")
@pytest.mark.parametrize("name", COMMANDS)
def test_no_text_of_the_package_names_an_option_of_another_command(name: str) -> None:
    texts = iterate_texts()
    assert len(texts) > 100
    options = collect_options(COMMANDS[name])
    for text in texts:
        for message in (text, f"scan.npz: expected this; found that. {text}", f"x: found (see {text}) that. {text}"):
            adapted = adapt_message(message, COMMANDS[name])
            assert find_options(adapted) <= options
            if find_options(message) <= options:
                assert adapted == message


@pytest.mark.contract("cli.remedies")
def test_what_is_left_of_a_remedy_is_whole() -> None:
    problem = "scan.npz: 'mask' (see --mask): expected an array, or nothing; found 3."
    remedies = " Drop it with --frames :7, or repair the file. Give --dark FILE. Use --min-coverage 0, or more light."
    adapted = adapt_message(problem + remedies, COMMANDS["evaluate"])
    assert adapted == (
        "scan.npz: 'mask': expected an array, or nothing; found 3. Repair the file. Use --min-coverage 0, or more "
        "light. Correct the scan file first: `torchptycho convert` has options for that."
    )
    assert adapt_message("Give --frames :7.", COMMANDS["inspect"]) == "Give --frames :7."
    assert find_options(adapt_message("--dark: belongs to it.", COMMANDS["drop"])) == set()


@pytest.mark.contract("cli.remedies")
def test_warnings_are_adapted_too(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("torchptycho.test")
    with adapt_logs(COMMANDS["simulate"]):
        log.warning("%s is odd. Use --input-scale scan.", "this")
    log.warning("that is odd. Use --input-scale scan.")
    assert [record.getMessage() for record in caplog.records] == [
        "this is odd.", "that is odd. Use --input-scale scan.",
    ]  # fmt: skip


@pytest.mark.contract("cli.remedies")
@pytest.mark.parametrize("name", READERS)
def test_bad_scans_are_refused_with_the_options_of_the_command(
    command: Command, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(tiny_run), "STORE": str(tiny_run / "store")}
    n_refused = 0
    for number, content in enumerate(CASES[case][0] for case in BAD):
        scan = tmp_path / f"scan{number}.npz"
        scan.write_bytes(content)
        answer = command(name, *({"SCAN": scan, **places}.get(one, one) for one in READERS[name]))
        n_refused += answer.code == 1
        assert find_options(answer.err + answer.out) <= collect_options(COMMANDS[name]), answer.err
    # An image may be compared whatever the frames are, and what is there of a file is inspected.
    assert n_refused >= {"evaluate": 0, "compare": 0, "inspect": 0}.get(name, 2)


@pytest.mark.contract("cli.remedies")
def test_all_reading_options_are_known_to_the_commands_that_read() -> None:
    names = {f"--{name.replace('_', '-')}" for name in ReadConfig.__dataclass_fields__} - {"--mapping"}
    for name in ("inspect", "convert", "refine", "resolution", "prepare", "train", "reconstruct", "replay"):
        assert names <= collect_options(COMMANDS[name])
