"""Properties of the installation and of the machine, as plain data."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from torchptycho.core.errors import ConfigError
from torchptycho.core.versions import collect_versions

__all__ = ["OPTIONAL_PACKAGES", "examine"]

OPTIONAL_PACKAGES: dict[str, tuple[str, str]] = {
    "hdf5plugin": ("detector frames compressed with bitshuffle, LZ4, Blosc, Zstandard", "pip install hdf5plugin"),
    "onnx": ("export to ONNX", "pip install 'torchptycho[onnx]'"),
    "onnxscript": ("export to ONNX", "pip install 'torchptycho[onnx]'"),
    "onnxruntime": ("reconstruct --engine onnx", "pip install onnxruntime"),
    "optuna": ("tune", "pip install 'torchptycho[tune]'"),
    "tensorboardX": ("train --logger tensorboard", "pip install 'torchptycho[tensorboard]'"),
    "mlflow": ("train --logger mlflow", "pip install 'torchptycho[mlflow]'"),
    "cbor2": ("watch a DECTRIS detector (stream version 2)", "pip install 'torchptycho[beamline]'"),
    "pyzmq": ("watch and replay over ZeroMQ", "pip install 'torchptycho[live]'"),
    "wandb": ("train --logger wandb", "pip install 'torchptycho[wandb]'"),
}
"""Packages by name: what each is for, and how to get it."""

_ENTRY_POINTS = ("torchptycho.readers", "torchptycho.generators", "torchptycho.frame_sources")
_MIN_MEMORY_GB = 4.0
_MIN_DISK_GB = 5.0


def examine(path: str | Path = ".", *, disk_mb: int = 128) -> dict[str, Any]:
    """Look at versions, machine, GPUs, the disk under a folder, and optional packages.

    Arguments:
        path: folder; a temporary file of `disk_mb` is written there, read and removed.
        disk_mb: 0 leaves the disk's speed out.

    Raises:
        ConfigError: no such folder, or a negative size.
        OSError: the folder cannot be written to.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: expected a folder; found {'a file' if path.exists() else 'nothing'}.")
    if disk_mb < 0:
        raise ConfigError(f"--disk-mb: expected 0 or more; found {disk_mb}.")
    memory_GB, free_memory_GB = _measure_memory_GB()
    summary: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **collect_versions()},
        "platform": platform.platform(),
        "python": sys.executable,
        "cpu_cores": _count_cores(),
        "memory_GB": memory_GB,
        "memory_available_GB": free_memory_GB,
        "gpus": _list_gpus(),
        "compiler": shutil.which(os.environ.get("CXX", "c++")),
        "disk": {
            "path": str(path.resolve()),
            "free_GB": shutil.disk_usage(path).free / 1e9,
            **_measure_disk_speed(path, disk_mb),
        },
        "optional": {
            name: {"installed": _get_version(name), "for": what, "get": how}
            for name, (what, how) in OPTIONAL_PACKAGES.items()
        },
        "plug_ins": {
            group: {entry.name: entry.value for entry in importlib.metadata.entry_points(group=group)}
            for group in _ENTRY_POINTS
        },
    }
    return summary | {"problems": _find_problems(summary)}


def _find_problems(summary: dict[str, Any]) -> list[str]:
    problems = []
    missing = [
        name for name, version in summary["versions"].items() if version == "not installed" and name != "torchptycho"
    ]
    if missing:
        problems.append(f"{', '.join(missing)}: not installed; run pip install torchptycho.")
    if not summary["gpus"]:
        problems.append(
            "no GPU that torch can use: everything computes on the CPU "
            "(`train --accelerator cpu`, `refine --device cpu`)."
        )
    available = summary["memory_available_GB"]
    if available is not None and available < _MIN_MEMORY_GB:
        problems.append(f"{available:.1f} GB of memory are available: use small batches (`train --batch-size`).")
    if summary["disk"]["free_GB"] < _MIN_DISK_GB:
        problems.append(
            f"{summary['disk']['free_GB']:.1f} GB are free under {summary['disk']['path']}: a run keeps a "
            "copy of all frames "
            "(`train --out` elsewhere)."
        )
    if summary["optional"]["hdf5plugin"]["installed"] is None:
        problems.append(
            "hdf5plugin is not installed: compressed detector files cannot be read. pip install hdf5plugin."
        )
    return problems


def _get_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure_memory_GB() -> tuple[float | None, float | None]:
    """Measure the total and the available memory; None if the system does not report it."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page / 1e9
    except (ValueError, OSError, AttributeError):
        return None, None
    try:
        # Includes the cache that the system would release, unlike SC_AVPHYS_PAGES.
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) * 1024 / 1e9
    except OSError:
        pass
    return total, None


def _list_gpus() -> list[dict[str, Any]]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        gpus.append(
            {
                "name": name,
                "memory_GB": total / 1e9,
                "free_GB": free / 1e9,
                "capability": ".".join(map(str, capability)),
            }
        )
    if torch.backends.mps.is_available():
        gpus.append({"name": "Apple GPU (mps)", "memory_GB": None, "free_GB": None, "capability": None})
    return gpus


def _measure_disk_speed(path: Path, megabytes: int) -> dict[str, float | None]:
    """Measure megabytes per second of one long file, written to the disk and read back from it."""
    if not megabytes:
        return {"write_MB_per_s": None, "read_MB_per_s": None}
    file = path / f".torchptycho-{secrets.token_hex(4)}.tmp"
    block = secrets.token_bytes(1_000_000)  # random, so that no file system compresses it
    try:
        begin = time.perf_counter()
        with file.open("xb", buffering=0) as stream:
            for _ in range(megabytes):
                stream.write(block)
            os.fsync(stream.fileno())
            written = time.perf_counter() - begin
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        with file.open("rb", buffering=0) as stream:
            while stream.read(1_000_000):
                pass
        read = time.perf_counter() - begin
    finally:
        file.unlink(missing_ok=True)
    return {"write_MB_per_s": megabytes / written, "read_MB_per_s": megabytes / read}
