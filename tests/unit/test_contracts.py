"""Every rule in specs/ is shown by a test, and every test that names a rule names one that is written down."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A line of a list, or a row of a table (specs/parity.md).
RULE = re.compile(r"^[-|] `(?P<name>[a-z0-9-]+(?:\.[a-z0-9_-]+)+)` (?P<sentence>.+)$")


def rules_in(folder: Path) -> dict[str, list[str]]:
    """Places (file:line) of each rule of the form "- `area.rule.name` Sentence.", or of a table row that begins so."""
    rules: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.md")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if found := RULE.match(line):
                rules.setdefault(found["name"], []).append(f"{path.name}:{number}")
    return rules


def markers_in(folder: Path) -> dict[str, list[str]]:
    """Places (file:line) of each `pytest.mark.contract("...")`, wherever it stands in a test file."""
    markers: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.contract"):
                continue
            place = f"{path.relative_to(folder)}:{node.lineno}"
            name = node.args[0] if len(node.args) == 1 else None
            literal = isinstance(name, ast.Constant) and isinstance(name.value, str)
            markers.setdefault(name.value if literal else f"<not one literal name: {ast.unparse(node)}>", []).append(
                place
            )
    return markers


def complaints(specs: Path, tests: Path) -> list[str]:
    rules, markers = rules_in(specs), markers_in(tests)
    return (
        [f"{name}: written down more than once, {', '.join(places)}" for name, places in rules.items() if places[1:]]
        + [f"{name}: no test shows this rule ({places[0]})" for name, places in rules.items() if name not in markers]
        + [f"{name}: no such rule in specs/ ({', '.join(p)})" for name, p in markers.items() if name not in rules]
    )


def test_rules_and_tests_agree() -> None:
    found = complaints(ROOT / "specs", ROOT / "tests")
    assert not found, "\n".join(["", *found])


def test_every_rule_is_a_sentence() -> None:
    for path in sorted((ROOT / "specs").glob("*.md")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if (found := RULE.match(line)) and line.startswith("-"):
                assert found["sentence"].endswith("."), f"{path.name}: {found['name']}: a rule ends with a full stop"


def test_each_area_has_rules() -> None:
    areas = Counter(name.partition(".")[0] for name in rules_in(ROOT / "specs"))
    assert {"physics", "loss", "stitch", "generator"} <= set(areas)


def test_disagreements_are_found(tmp_path: Path) -> None:
    specs, tests = tmp_path / "specs", tmp_path / "tests"
    (tests / "unit").mkdir(parents=True)
    specs.mkdir()
    (specs / "a.md").write_text(
        "# A\n\n- `a.shown` Is shown.\n- `a.bare` Is not.\n- `a.twice` Stands here.\n- `plain` text\n"
    )
    (specs / "b.md").write_text("- `a.twice` And here.\n")
    (tests / "unit" / "test_a.py").write_text(
        "import pytest\n"
        "NAME = 'a.bare'\n"
        "# @pytest.mark.contract('a.bare') in a comment shows nothing\n"
        "@pytest.mark.contract('a.shown')\n"
        "@pytest.mark.contract('a.twice')\n"
        "def test_a() -> None: '''@pytest.mark.contract('a.bare')'''\n"
        "@pytest.mark.contract('a.unwritten')\n"
        "@pytest.mark.contract(NAME)\n"
        "class TestA: ...\n"
    )
    found = complaints(specs, tests)
    assert [line.partition(":")[0] for line in found] == ["a.twice", "a.bare", "a.unwritten", "<not one literal name"]
