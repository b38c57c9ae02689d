"""Processes that torchrun or Slurm has started, of which this may be one."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping

from torchptycho.core.errors import ConfigError

__all__ = ["LaunchedProcess", "find_launched_process"]

# Ports from here on, by the number of the job, so that two jobs on a machine differ.
_FIRST_PORT, _N_PORTS = 15000, 10000


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchedProcess:
    """This process among those of its launcher.

    Arguments:
        rank, size: its number, and how many there are.
        local_rank: its number on its machine.
        launcher: torchrun or Slurm.
        address: host and port of the first process, where the launcher does not provide the meeting point itself.
    """

    rank: int
    size: int
    local_rank: int
    launcher: str
    address: tuple[str, int] | None = None

    def check(self, devices: int, nodes: int) -> None:
        """Check that as many processes were started as are asked for.

        Raises:
            ConfigError: naming both.
        """
        if devices * nodes != self.size:
            raise ConfigError(
                f"devices, nodes: expected {self.size} processes, as {self.launcher} started; found {devices} x "
                f"{nodes}. Give the devices of each machine with devices, and the machines with nodes."
            )


def find_launched_process(environment: Mapping[str, str] | None = None) -> LaunchedProcess | None:
    """Return what torchrun or srun say of this process; None where neither has started several.

    Arguments:
        environment: variables; None takes those of this process.
    """
    known = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in known and int(known.get("WORLD_SIZE", "1")) > 1:
        return LaunchedProcess(
            rank=int(known["RANK"]),
            size=int(known["WORLD_SIZE"]),
            local_rank=int(known["LOCAL_RANK"]),
            launcher="torchrun",
        )
    # Of a step alone: in the script of a job there are the other variables too, and one process.
    if int(known.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in known:
        host = known.get("MASTER_ADDR") or _find_first_host(known.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        job = re.sub(r"\D", "", known.get("SLURM_JOB_ID", "0")) or "0"
        port = int(known.get("MASTER_PORT") or _FIRST_PORT + int(job) % _N_PORTS)
        return LaunchedProcess(
            rank=int(known["SLURM_PROCID"]),
            size=int(known["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(known.get("SLURM_LOCALID", "0")),
            launcher="Slurm",
            address=(host, port),
        )
    return None


def _find_first_host(hosts: str) -> str:
    """Return the first of Slurm's hosts: a03 of "a[03-07,9],b2"."""
    name = re.sub(r"\[(\d+)[^\]]*\]", r"\1", re.match(r"[^,\[]*(\[[^\]]*\])?[^,]*", hosts)[0])  # type: ignore[index]
    return name or "127.0.0.1"
