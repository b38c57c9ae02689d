"""Profiles of the property tests and the fixtures that several folders share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
from first_calls import check_again

# Derandomised: a red CI run is red again on any machine. Explore locally with HYPOTHESIS_PROFILE=dev.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=15, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None, max_examples=200, print_blob=True)
hypothesis.settings.register_profile("thousand", derandomize=True, deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def measured_data() -> Path:
    """Folder of measured scans that are not part of the project; the test skips where it is absent."""
    folder = _SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"measured scans are not at {folder}")
    return folder


def pytest_runtest_setup() -> None:
    check_again()
