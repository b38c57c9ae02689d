"""Processes that train together: one prepares, and the others learn how that went before Lightning connects them."""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed import Store as Channel  # type: ignore[attr-defined]

from torchptycho.core.errors import StoreError
from torchptycho.core.text import format_error
from torchptycho.data.store import MANIFEST, Store

__all__ = ["RankCoordinator", "wait_for_store"]

T = TypeVar("T")

_POLL_S = 0.2
# Timeouts: until the first process listens, until all others know of its failure, and until a shared file system shows
# a new folder on another machine.
_CONNECT_TIMEOUT_S, _ACKNOWLEDGE_TIMEOUT_S, _VISIBLE_TIMEOUT_S = 600.0, 30.0, 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankCoordinator:
    """The processes of a run, of which this is one. Keep it as long as the run takes: the first one answers the others.

    Arguments:
        rank: which of them this is; 0 is the first.
        size: how many there are.
        channel: where they leave each other messages; None where there is no other process, or where the first has
            started the others, which it does after it has prepared.
    """

    rank: int
    size: int = 1
    channel: Channel | None = None

    @classmethod
    def from_environment(cls, environment: ClusterEnvironment | None) -> RankCoordinator:
        """Read the processes that torchrun, Slurm or another launcher started.

        Raises:
            StoreError: the first one does not answer.
        """
        started_by_first = isinstance(environment, LightningEnvironment)
        if environment is None or started_by_first or environment.world_size() == 1:
            return cls(rank=rank_zero_only.rank)  # type: ignore[attr-defined]
        rank, size = environment.global_rank(), environment.world_size()
        # torchrun provides the store itself, which keeps the messages from before a restart of all processes.
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        where = (environment.main_address, environment.main_port)
        try:
            channel = TCPStore(
                *where,
                world_size=size,
                is_master=rank == 0 and not agent,
                timeout=datetime.timedelta(seconds=_CONNECT_TIMEOUT_S),
                wait_for_workers=False,
                # Lightning uses the same address later.
                multi_tenant=True,
            )
        except RuntimeError as error:
            raise StoreError(
                f"{where[0]}:{where[1]}: the first process does not answer ({_to_one_line(error)})."
            ) from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(rank=rank, size=size, channel=PrefixStore(f"torchptycho/{attempt}", channel))

    def rank_zero_first(self, work: Callable[[bool], T]) -> T:
        """Call `work(True)` in the first process, and after it has succeeded `work(False)` in the others.

        Raises:
            StoreError: in the others, with the error of the first; the first raises the error itself.
        """
        channel = self.channel
        if channel is None:
            return work(self.rank == 0)
        try:
            turn = channel.add(f"turns of {self.rank}", 1)
            if self.rank:
                self._await_rank_zero(channel, f"{turn}/outcome", f"{turn}/heard")
        except RuntimeError as error:
            raise StoreError(
                f"the first process ended without a message ({_to_one_line(error)}). See its output."
            ) from None
        if self.rank:
            return work(False)
        try:
            result = work(True)
        except BaseException as error:
            channel.set(f"{turn}/outcome", _to_one_line(error) or type(error).__name__)
            begin = time.monotonic()
            while channel.add(f"{turn}/heard", 0) < self.size - 1 and time.monotonic() - begin < _ACKNOWLEDGE_TIMEOUT_S:
                time.sleep(_POLL_S)
            raise
        channel.set(f"{turn}/outcome", "")
        return result

    @staticmethod
    def _await_rank_zero(channel: Channel, outcome: str, heard: str) -> None:
        while not channel.check([outcome]):
            time.sleep(_POLL_S)
        fault = channel.get(outcome).decode()
        channel.add(heard, 1)
        if fault:
            raise StoreError(f"the first process could not prepare the run: {fault}")


def wait_for_store(path: Path) -> Store:
    """Wait for a store that another process has made; a file system may show it a little later.

    Raises:
        StoreError: it is not there.
    """
    begin = time.monotonic()
    while not (path / MANIFEST).is_file() and time.monotonic() - begin < _VISIBLE_TIMEOUT_S:
        time.sleep(_POLL_S)
    if not (path / MANIFEST).is_file():
        raise StoreError(
            f"{path}: expected the store that the first process has prepared; found none. "
            "Name a folder that all machines share, and start the processes with torchrun or srun."
        )
    return Store.open(path)


def _to_one_line(error: BaseException) -> str:
    return format_error(error)
