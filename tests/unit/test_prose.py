"""The language of the project: the field's terms (docs/glossary.md), and docstrings that begin with a verb."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each with what to write instead.
BANNED = {
    r"\bbeams?\b(?![ -]?stop)": "probe (or direct beam, beamline, beamtime, beam stop)",
    r"\bnobody\b": "no process, no one",
    r"\banew\b": "again",
    r"\bso many\b": "a number",
    r"\bmade good\b": "corrected",
    r"\bput right\b": "corrected",
    r"\bmended\b": "fixed",
    r"\bborne\b": "tolerated",
    r"\bbeside\b": "next to, together with",
    r"\bslow turns?\b": "low spatial frequencies of the phase",
    r"\bshed\b": "illuminates",
    r"\b(un|never-|weakly )?lit\b": "illuminated",
    r"(?<!fourier )\bring correlation\b": "Fourier ring correlation (FRC)",
    r"\bthe whole way\b": "end to end",
    r"\bwish(es|ed)?\b": "residual, request",
    r"\bpretended\b": "emulated",
    r"\bwhat a \w+ is of\b": "the content",
    r"\bphase turns?\b": "phase factor",
    r"\bcold (start|refinement|run)": "from a uniform start",
    r"\btold\b": "reported, given",
}
# The direct beam and its place on the detector, kinds of beams, groups of HDF5 files, and a value of --report.
ALLOWED = re.compile(
    r"direct beam|cold cache|\bbeam[- ]?(line|time|stop|splitter|cent(er|re)|offset|threshold)s?\b|\bbeam( \d)?/"
    r"|\b(cone|parallel|gaussian|electron) beams?\b"
    r"|\"beside\"",
    re.IGNORECASE,
)

# The names of rules in specs/ are identifiers: tests refer to them.
RULE_NAME = re.compile(r"^- `[\w.-]+`")

# First words that no sentence in the imperative mood begins with.
NOT_IMPERATIVE = frozenset(
    re.findall(
        r"\w+",
        """a an the what whether how which who whose where when why it its this that these those each every all one some
        none no in on of for from to as if with without by at only not two both any same such there""",
    )
)


def _texts() -> list[Path]:
    folders = [ROOT / name for name in ("torchptycho", "docs", "specs", "examples", "benchmarks")]
    files = [p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".md", ".html", ".ipynb")]
    return sorted([*files, *ROOT.glob("*.md")])


@pytest.mark.parametrize("path", _texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_use_the_terms_of_the_field(path: Path) -> None:
    if path.name == "glossary.md":
        pytest.skip("the glossary names the words that it replaces")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        # A name in code is judged by its words.
        text = ALLOWED.sub("", RULE_NAME.sub("", line).replace("_", " "))
        found += [
            f"{number}: '{match.group()}' -> {instead}"
            for pattern, instead in BANNED.items()
            for match in re.finditer(pattern, text, re.IGNORECASE)
        ]
    assert not found, f"{path.relative_to(ROOT)}:\n" + "\n".join(found)


def _is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = [ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in function.decorator_list]
    return any(name in ("property", "cached_property", "setter", "fixture", "overload") for name in names)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "torchptycho").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "torchptycho"))
)
def test_docstrings_of_functions_begin_with_a_verb(path: Path) -> None:
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_property(node):
            text = ast.get_docstring(node) or ""
            first = re.split(r"\W", text, maxsplit=1)[0]
            if text and first.lower() in NOT_IMPERATIVE:
                wrong.append(f"{node.lineno}: {node.name}: '{text.splitlines()[0]}'")
    assert not wrong, "\n".join(wrong)
