"""The GPU of these tests: a real one, or where there is none a pretended one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from emulated_cuda import EmulatedGpu, emulated_cuda


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """The device; within a test that has it, torch knows it."""
    if torch.cuda.is_available():
        yield torch.device("cuda", 0)
        return
    with emulated_cuda():
        yield torch.device("cuda", 0)


@pytest.fixture
def machine() -> Iterator[EmulatedGpu]:
    """What the pretended GPU tells of itself, also where there is a real one."""
    with emulated_cuda() as found:
        yield found
