"""Sums over the processes that share the frames of a refinement; without others they are what they were."""

from __future__ import annotations

import json
import signal
import threading
import time
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, distributed

from torchptycho.core.errors import StoreError

__all__ = ["ONE_PROCESS", "GroupReducer", "OneProcess", "Reducer"]

# Signals within this time of each other are one Ctrl+C.
_SAME_INTERRUPT_S = 2.0


@runtime_checkable
class Reducer(Protocol):
    """What a process needs of the others."""

    @property
    def rank(self) -> int:
        """Number of this process; the first is 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place; they have the same shapes in each of them."""
        ...

    def collect(self, values: Shaped[Tensor, "own *rest"], is_own: Bool[Tensor, " k"]) -> Shaped[Tensor, "k *rest"]:
        """Return the rows of all processes: those of this one, which `is_own` marks, are `values`."""
        ...

    def copy_from_first(self, *tensors: Tensor) -> None:
        """Replace each tensor by that of the first process, in place."""
        ...

    def share(self, what: Any) -> Any:
        """Return the plain data of the first process."""
        ...

    def check_same(self, what: dict[str, Any]) -> None:
        """Check that plain data are those of the first process.

        Raises:
            StoreError: naming the first entry that differs.
        """
        ...


class OneProcess:
    """No other process."""

    rank, size = 0, 1

    def sum(self, *tensors: Tensor) -> None:
        """Leave the sums as they are."""

    def collect(self, values: Shaped[Tensor, "own *rest"], is_own: Bool[Tensor, " k"]) -> Shaped[Tensor, "k *rest"]:
        """Return the rows, all of which are of this process."""
        return values

    def copy_from_first(self, *tensors: Tensor) -> None:
        """Leave the tensors as they are."""

    def share(self, what: Any) -> Any:
        """Return the data."""
        return what

    def check_same(self, what: dict[str, Any]) -> None:
        """Do nothing: there is no other process."""


ONE_PROCESS = OneProcess()


class GroupReducer:
    """The processes of torch's default group. All of them end together at the next sum when one is interrupted.

    Arguments:
        device: which holds the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._interrupted_s: float | None = None

    @property
    def rank(self) -> int:
        return distributed.get_rank()

    @property
    def size(self) -> int:
        return distributed.get_world_size()

    def watch_interrupts(self) -> None:
        """Take Ctrl+C, which may reach each process at another moment, as a request that all of them hear of.

        One that comes later ends this process at once; the terminal and the launcher may both send the first.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self._interrupted_s is None:
                self._interrupted_s = time.monotonic()
            elif time.monotonic() - self._interrupted_s > _SAME_INTERRUPT_S:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, note)

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place.

        Tensors of one type go together. The sums are the same in all processes, to the bit.

        Raises:
            KeyboardInterrupt: one of the processes was interrupted.
        """
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            kinds.setdefault(real.dtype, []).append(real)
        for dtype, parts in kinds.items():
            request = torch.tensor([float(self._interrupted_s is not None)], device=self._device).to(dtype)
            flat = torch.cat([*(part.reshape(-1) for part in parts), request])
            distributed.all_reduce(flat)
            # Looking at it waits for a GPU's queued work, which sums of single numbers do in any case.
            if (self._device.type == "cpu" or dtype == torch.float64) and float(flat[-1]) > 0:
                raise KeyboardInterrupt
            summed = torch.split(flat[:-1], [part.numel() for part in parts])
            for part, values in zip(parts, summed, strict=True):
                part.copy_(values.view(part.shape))

    def collect(self, values: Shaped[Tensor, "own *rest"], is_own: Bool[Tensor, " k"]) -> Shaped[Tensor, "k *rest"]:
        """Return the rows of all processes: those of this one, which `is_own` marks, are `values`."""
        rows = values.new_zeros(len(is_own), *values.shape[1:])
        rows[is_own] = values
        self.sum(rows)
        return rows

    def copy_from_first(self, *tensors: Tensor) -> None:
        """Replace each tensor by that of the first process, in place."""
        for tensor in tensors:
            values = tensor.contiguous()
            distributed.broadcast(torch.view_as_real(values) if values.is_complex() else values, 0)
            if values is not tensor:
                tensor.copy_(values)

    def share(self, what: Any) -> Any:
        """Return the plain data of the first process."""
        text = json.dumps(what, sort_keys=True).encode()
        size = torch.tensor([len(text)], device=self._device)
        distributed.broadcast(size, 0)
        buffer = torch.zeros(int(size), dtype=torch.uint8, device=self._device)
        if self.rank == 0:
            buffer.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        distributed.broadcast(buffer, 0)
        return json.loads(bytes(buffer.tolist()))

    def check_same(self, what: dict[str, Any]) -> None:
        """Check that plain data are those of the first process.

        Raises:
            StoreError: in each process for which they differ, naming the first entry.
        """
        first, here = self.share(what), json.loads(json.dumps(what))
        differs = sorted(key for key in first.keys() | here.keys() if first.get(key) != here.get(key))
        if differs:
            raise StoreError(
                f"{differs[0]}: process {self.rank} has {here.get(differs[0])!r}, the first one "
                f"{first.get(differs[0])!r}. Start all with the same options, on files that all machines share."
            )
