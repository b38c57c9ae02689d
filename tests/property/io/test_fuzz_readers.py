"""Mutated scan files of every format; `make fuzz` does the same with many more, in processes of their own."""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

import pint  # noqa: F401  # It loads dask where that is installed, which unpickles its own operators on import.
import pytest
from hypothesis import HealthCheck, given, settings
from scan_files import ScanFileCase, make_cases, mutate, read_all, write_files
from strategies import seeds

FILES_EACH = 25
CASES = make_cases()
UNPICKLED: list[str] = []


def _notice_pickle(event: str, _: tuple[object, ...]) -> None:
    if event == "pickle.find_class":
        UNPICKLED.append(event)


@pytest.fixture(scope="session")
def pickle_is_noticed() -> None:
    """Hooks stay for ever and slow down whatever runs after them, so there is one, and none before it is needed."""
    sys.addaudithook(_notice_pickle)


@pytest.mark.contract("files.fuzz")
@pytest.mark.usefixtures("pickle_is_noticed")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_mutated_files_are_read_or_refused(case: ScanFileCase, tmp_path: Path) -> None:
    UNPICKLED.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=FILES_EACH, suppress_health_check=[HealthCheck.too_slow])
    @given(seed=seeds)
    def check(seed: int) -> None:
        with write_files(mutate(case, random.Random(seed)), tmp_path):
            read_all(case, tmp_path)

    check()
    assert not UNPICKLED
    # Files of some kB: what is left is the readers' own code and the libraries that they load.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
