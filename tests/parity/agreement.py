"""Whether two implementations agree, and the record of how far apart they were seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from tolerances import assert_close, relative_l2, tolerance
from torch import Tensor

MISSING = "the oracle needs TensorFlow: pip install -e '.[oracle]'"


@dataclasses.dataclass
class Record:
    worst: float
    limit: float
    count: int


RECORDS: dict[str, Record] = {}
"""By operator and tolerance, over this process."""


def assert_agree(found: np.ndarray | Tensor, expected: np.ndarray | Tensor, operator: str, name: str) -> None:
    """Fail unless both have one shape and are within the named tolerance; remember the error under the operator.

    Arguments:
        found: what is tested.
        expected: the oracle's, or the recorded one.
        operator: row of specs/parity.md (a gradient: with ".gradient" behind it).
        name: entry of the table of tolerances.
    """
    a, b = (torch.as_tensor(value) for value in (found, expected))
    error = relative_l2(a, b)
    # One operator is held to several tolerances: float32, float64.
    record = RECORDS.setdefault(f"{operator} ({name})", Record(0.0, tolerance(name), 0))
    record.worst, record.count = max(record.worst, error), record.count + 1
    assert_close(a, b, name)


def assert_same_indices(found: np.ndarray, expected: np.ndarray, operator: str) -> None:
    """Fail unless both are the same whole numbers."""
    assert found.dtype.kind == expected.dtype.kind == "i", f"{found.dtype} and {expected.dtype}"
    record = RECORDS.setdefault(operator, Record(0.0, 0.0, 0))
    record.count += 1
    np.testing.assert_array_equal(found, expected)
