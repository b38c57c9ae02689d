"""Change the numeric code in small ways and count which changes no test notices.

    make mutate
    python tests/mutation.py --per-file 12 --seed 0

mutmut (extra `mutation`) makes a mutant of every operator, constant, argument and condition of the files named in
pyproject.toml; this script draws some of each file at random, runs the tests that reach them, and prints a table of
what was killed. A mutant survives when all of its tests still pass, or when no test reaches it; `mutmut show NAME`
prints its change, and `--list` prints it for all survivors. Mutants are kept in mutants/, so that a second run computes
only what is new. What ran out of time, or ended otherwise than by tests that pass or one that fails, is counted apart
and not as killed: time is measured on the clock, and on a busy machine it says nothing.

Mutants that change only the text of an error, a warning, a log or a note are left out: they say nothing about numeric
code, and tests state what a message has to name, not its words. So are those of `strict` in `zip`, which asserts what
is true of every call.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

MUTANTS = Path("mutants")
# Exit codes of mutmut's workers: all tests passed; no test reaches it; a test failed, a test file could not be
# imported, pytest itself failed. Any other one decides nothing: SIGXCPU (-24) is sent when time is over.
SURVIVED, NO_TESTS, KILLED = 0, 33, (1, 2, 3)
# Strings with a space beside a letter are sentences or parts of them; keys and modes are single words.
PROSE = re.compile(r"[A-Za-z.,:;]\s|\s[A-Za-z]|[A-Za-z][.:;,]$")
MESSAGE_ARGUMENTS = {"remedy", "expected", "found"}


class _BlankText(ast.NodeTransformer):
    """Remove the text of messages from a function."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        # All of what an error says, but not its class.
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=error, cause=node.cause)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func).startswith(("_log.", "warnings.")):
            return ast.Call(func=node.func, args=[], keywords=[])
        silent = {"strict"} if isinstance(node.func, ast.Name) and node.func.id == "zip" else MESSAGE_ARGUMENTS
        node.keywords = [argument for argument in node.keywords if argument.arg not in silent]
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        return ast.Constant("") if PROSE.search(_undo_marks(text)) else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        is_text = isinstance(node.value, str) and PROSE.search(_undo_marks(node.value))
        return ast.Constant("") if is_text else node


def _undo_marks(text: str) -> str:
    """Remove the marks that mutmut puts around a string."""
    return text.removeprefix("XX").removesuffix("XX")


def changes_numbers(original: ast.FunctionDef, mutant: ast.FunctionDef) -> bool:
    """Return True if two functions differ in more than the text of messages."""
    bodies = []
    for function in (original, mutant):
        blank = _BlankText().visit(copy.deepcopy(function))
        bodies.append(ast.dump(ast.Module([*blank.args.defaults, *blank.args.kw_defaults, *blank.body], [])))
    return bodies[0] != bodies[1]


def list_text_mutants(file: str) -> set[str]:
    """List the mutants of a file that change only the text of a message."""
    module = file.removesuffix(".py").replace("/", ".")
    tree = ast.parse((MUTANTS / file).read_text(encoding="utf-8"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {
        f"{module}.{name}"
        for name, mutant in functions.items()
        if re.search(r"__mutmut_\d+$", name) and not changes_numbers(functions[re.sub(r"\d+$", "orig", name)], mutant)
    }


def run_mutmut(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("mutmut")), *arguments], check=False)


def read_results() -> dict[str, dict[str, int | None]]:
    """Return the exit code of each mutant that changes numbers, by file; None where it has not been run."""
    stats = MUTANTS / "mutmut-stats.json"
    reached = json.loads(stats.read_text(encoding="utf-8"))["tests_by_mangled_function_name"] if stats.exists() else {}
    results = {}
    for path in sorted(MUTANTS.rglob("*.py.meta")):
        file = str(path.relative_to(MUTANTS)).removesuffix(".meta")
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        text_only = list_text_mutants(file) if codes else set()
        # mutmut notices that no test reaches a mutant only when it is to run it.
        codes = {
            name: code if reached.get(name.rpartition("__mutmut_")[0]) else NO_TESTS
            for name, code in codes.items()
            if name not in text_only
        }
        if codes:
            results[file] = codes
    return results


def draw_mutants(results: dict[str, dict[str, int | None]], per_file: int, seed: int) -> list[str]:
    """Draw names of mutants, as many of each file, whether a test reaches them or not."""
    drawn: list[str] = []
    for file, codes in results.items():
        drawn += random.Random(f"{seed} {file}").sample(sorted(codes), min(per_file, len(codes)))
    return drawn


def print_table(results: dict[str, dict[str, int | None]], drawn: list[str]) -> list[str]:
    """Print a row for each file; return the names of the survivors."""
    chosen = set(drawn)
    survivors: list[str] = []
    total: Counter[str] = Counter()
    print("| file | mutants | not reached | run | killed | survived | undecided |\n|---|---|---|---|---|---|---|")
    for file, codes in results.items():
        run = {name: code for name, code in codes.items() if name in chosen and code is not None}
        row = Counter(
            mutants=len(codes),
            unreached=sum(code == NO_TESTS for code in codes.values()),
            run=len(run),
            survived=sum(code in (SURVIVED, NO_TESTS) for code in run.values()),
            killed=sum(code in KILLED for code in run.values()),
        )
        survivors += [name for name, code in run.items() if code in (SURVIVED, NO_TESTS)]
        total += row
        _print_row(file, row)
    _print_row("all", total)
    return survivors


def _print_row(file: str, row: Counter[str]) -> None:
    killed = f"{100 * row['killed'] / row['run']:.0f} %" if row["run"] else "-"
    undecided = row["run"] - row["killed"] - row["survived"]
    print(f"| {file} | {row['mutants']} | {row['unreached']} | {row['run']} | {killed} | {row['survived']} |", end=" ")
    print(f"{undecided} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-file", type=int, default=12, help="mutants drawn from each file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the change of each survivor")
    given = parser.parse_args()
    if not read_results():
        # Any one mutant: all of them are written first, and the tests are timed.
        run_mutmut("run", "torchptycho.physics.diffraction.x_far_field__mutmut_1")
    drawn = draw_mutants(read_results(), given.per_file, given.seed)
    run_mutmut("run", "--max-children", str(given.processes), *drawn)
    survivors = print_table(read_results(), drawn)
    for name in survivors:
        print(name)
        if given.list:
            run_mutmut("show", name)


if __name__ == "__main__":
    main()
