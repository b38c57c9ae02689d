"""Frame rates of the status."""

from __future__ import annotations

import pytest

from torchptycho.live.status import FrameRates


@pytest.mark.contract("live.status")
def test_rates_are_those_of_the_last_seconds() -> None:
    rates = FrameRates()
    assert rates.update(0.0, 0, 0) == (0.0, 0.0)
    assert rates.update(1.0, 100, 50) == (100.0, 50.0)
    for second in range(2, 20):
        found = rates.update(float(second), 100 + 10 * (second - 1), 50)
    assert found == (10.0, 0.0)
