"""The fenced blocks of README and documentation, and how they are run or, where they cannot be, looked over."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import io
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from torchptycho.cli.app import _parse, main
from torchptycho.cli.base import Command, WritingCommand
from torchptycho.cli.command_table import COMMANDS
from torchptycho.core.config import load_config

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("sh", "python", "yaml", "toml", "ini", "text", "mermaid")
_MARKER = re.compile(r"^<!-- not run: (?P<reason>.*?) *-->$")
_FENCE = re.compile(r"^```(?P<language>[a-z]*)(?: title=\"(?P<title>[^\"]+)\")?\s*$")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_REDIRECTIONS = (">", ">>", "|", "<", "&&", ";")


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Arguments:
        line: of its first line in the page.
        title: name of the file that it shows.
        not_run: why it cannot be run here.
    """

    line: int
    language: str
    text: str
    title: str | None = None
    not_run: str | None = None


def pages() -> list[Path]:
    """Every page that tells a reader what to type."""
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").glob("*.md")),
        *sorted((ROOT / "examples").glob("*.ipynb")),
    ]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page of Markdown, or the cells of a notebook, in order."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return [
            Block(number, "python", "".join(cell["source"]))
            for number, cell in enumerate(cells, start=1)
            if cell["cell_type"] == "code"
        ]
    return list(_iterate_blocks(text.splitlines()))


def _iterate_blocks(lines: list[str]) -> Iterator[Block]:
    reason: str | None = None
    begun: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines, start=1):
        if begun is not None:
            if line.startswith("```"):
                first, fence = begun
                yield Block(first, fence["language"], "\n".join(lines[first : number - 1]), fence["title"], reason)
                begun = reason = None
        elif line.lstrip().startswith("```"):
            fence = _FENCE.match(line)
            assert fence, f"line {number}: a block begins with ``` and a language, at the margin; found {line!r}"
            begun = number, fence
        elif marker := _MARKER.match(line):
            reason = marker["reason"]
        elif line.strip():
            reason = None


def split_commands(block: Block) -> list[list[str]]:
    """The words of each command of a block, without comments."""
    text = block.text.replace("\\\n", " ")
    words = (shlex.split(line, comments=True) for line in text.splitlines())
    return [line for line in words if line]


class Runner:
    """Runs the blocks of one page, one after the other, in the current folder; its Python blocks share their names."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> str:
        """What it printed."""
        if block.title:
            Path(block.title).write_text(block.text + "\n", encoding="utf-8")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.language == "python" and not block.title:
                exec(compile(block.text, f"<block of line {block.line}>", "exec"), self.names)
            elif block.language == "sh":
                for words in split_commands(block):
                    _run_line(words)
            elif block.language in ("yaml", "toml"):
                load_config(_write_block(block))
        return printed.getvalue()


def _write_block(block: Block) -> Path:
    path = Path(block.title or f"block-{block.line}.{block.language}")
    path.write_text(block.text, encoding="utf-8")
    return path


def _run_line(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        while _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            if name == "PYTHONPATH":
                patch.syspath_prepend(value)
            patch.setenv(name, value)
        out: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if len(words) > 2 and words[-2] == ">":
            target = Path(words.pop()).expanduser()
            words.pop()
            target.parent.mkdir(parents=True, exist_ok=True)
            out = contextlib.redirect_stdout(target.open("w", encoding="utf-8"))
        assert not set(words) & set(_REDIRECTIONS), f"more of a shell than is understood here: {shlex.join(words)}"
        words = [found for word in words for found in sorted(glob.glob(word)) or [word]]
        with out as stream:
            _run_words(words, patch)
        if stream is not None:
            stream.close()


def _run_words(words: list[str], patch: pytest.MonkeyPatch) -> None:
    program, *arguments = words
    if program == "torchptycho":
        # The folder may hold files of these names already, which other pages read.
        if issubclass(COMMANDS.get(arguments[0], Command), WritingCommand) and "--resume" not in arguments:
            arguments = [*arguments, "--overwrite"]
        code = _run_for_exit_code(main, arguments)
        assert code == 0, f"exit code {code} of: {shlex.join(words)}"
    elif program == "python" and arguments[0] == "-c":
        exec(compile(arguments[1], "<python -c>", "exec"), {"__name__": "__main__"})
    elif program == "python":
        patch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        raise AssertionError(f"neither run nor marked with '<!-- not run: why -->': {shlex.join(words)}")


def _run_for_exit_code(function: Any, arguments: list[str]) -> Any:
    try:
        return function(arguments)
    except SystemExit as left:  # how the option parser leaves
        return left.code or 0


def check_unrun_block(block: Block) -> None:
    """What can be said of a block that is not run: its options are known, its targets and extras are there."""
    if block.language != "sh":
        return
    for words in split_commands(block):
        words = [word for word in words if not _ASSIGNMENT.match(word)]
        if "torchptycho" in words:
            arguments = words[words.index("torchptycho") + 1 :]
            with contextlib.redirect_stderr(io.StringIO()) as said:
                code = _run_for_exit_code(_parse, arguments)
            assert isinstance(code, Command) or code == 0, said.getvalue()
        elif words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert set(words[1:]) <= set(targets), f"no such target: {words}"
        elif words[:2] == ["pip", "install"]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for extras in re.findall(r"^(?:\.|torchptycho)\[(.*)\]$", "\n".join(words), re.MULTILINE):
                assert set(extras.split(",")) <= set(project["optional-dependencies"]), f"no such extra: {words}"
        for script in words:
            if script.startswith(("examples/", "benchmarks/")):
                assert (ROOT / script).is_file(), f"no such file: {script}"


def known_options() -> set[str]:
    """Every option of every command, as its help prints them, and of the programs that the pages use beside it."""
    sys.path.insert(0, str(ROOT / "docs" / "hooks"))
    try:
        import reference
    finally:
        sys.path.pop(0)
    found = set(re.findall(r"--[a-zA-Z][a-zA-Z0-9-]*", reference.commands()))
    scripts = (*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py"))
    for script in scripts:
        found |= set(re.findall(r"add_argument\(\s*\"(--[a-z0-9-]+)\"", script.read_text(encoding="utf-8")))
    return found


def extract_words(text: str) -> set[str]:
    """Its words, without numbers, names of files and anything that differs from run to run."""
    return set(re.findall(r"(?<![\w./])[A-Za-z][A-Za-z_]+[a-z](?![\w./])", text))


def page_key(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
