"""Change the numeric code in small ways and count which changes no test notices.

    make mutate
    python tests/mutation.py --per-file 12 --seed 0

mutmut (extra `mutation`) makes a mutant of every operator, constant, argument and condition of the files named in
pyproject.toml; this script draws some of each file at random, runs the tests that reach them, and prints a table of
what was killed. A mutant survives when all of its tests still pass; `mutmut show NAME` prints its change, and
`--list` prints it for all survivors. Mutants are kept in mutants/, so that a second run computes only what is new.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

MUTANTS = Path("mutants")
# Exit codes of mutmut's workers; every other one means that a test failed or ran out of time.
SURVIVED, NO_TESTS = 0, 33


def run_mutmut(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("mutmut")), *arguments], check=False)


def read_results() -> dict[str, dict[str, int | None]]:
    """Return the exit code of each mutant by file; None where it has not been run."""
    results = {}
    for path in sorted(MUTANTS.rglob("*.py.meta")):
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        if codes:
            results[str(path.relative_to(MUTANTS)).removesuffix(".meta")] = codes
    return results


def draw_mutants(results: dict[str, dict[str, int | None]], per_file: int, seed: int) -> list[str]:
    """Draw names of mutants that some test reaches, as many of each file."""
    drawn: list[str] = []
    for file, codes in results.items():
        reached = sorted(name for name, code in codes.items() if code != NO_TESTS)
        drawn += random.Random(f"{seed} {file}").sample(reached, min(per_file, len(reached)))
    return drawn


def print_table(results: dict[str, dict[str, int | None]]) -> list[str]:
    """Print a row for each file; return the names of the survivors."""
    survivors: list[str] = []
    total: Counter[str] = Counter()
    print("| file | mutants | not reached | run | killed | survived |\n|---|---|---|---|---|---|")
    for file, codes in results.items():
        row = Counter(
            mutants=len(codes),
            unreached=sum(code == NO_TESTS for code in codes.values()),
            run=sum(code not in (None, NO_TESTS) for code in codes.values()),
            survived=sum(code == SURVIVED for code in codes.values()),
        )
        survivors += [name for name, code in codes.items() if code == SURVIVED]
        total += row
        print(
            f"| {file} | {row['mutants']} | {row['unreached']} | {row['run']} | {_percent(row)} | {row['survived']} |"
        )
    print(
        f"| all | {total['mutants']} | {total['unreached']} | {total['run']} | {_percent(total)} | "
        f"{total['survived']} |"
    )
    return survivors


def _percent(row: Counter[str]) -> str:
    return f"{100 * (1 - row['survived'] / row['run']):.0f} %" if row["run"] else "-"


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
    survivors = print_table(read_results())
    for name in survivors:
        print(name)
        if given.list:
            run_mutmut("show", name)


if __name__ == "__main__":
    main()
