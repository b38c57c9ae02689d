"""All steps on a simulated experiment, as `make demo` shows them."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from torchptycho.core.config import RunConfig, SimulateConfig, TrainConfig, to_dict
from torchptycho.core.errors import ConfigError
from torchptycho.io.storage.outputs import check_output_folder
from torchptycho.visualization.tables import format_value, make_metrics_table, make_table, to_json

__all__ = ["run_demo"]

_MARKER_FILE = "demo.json"


@dataclasses.dataclass
class _StepTimer:
    """Seconds of each step, and the process's peak memory after it."""

    console: Console
    rows: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.console.print(f"{name} ...")
        start = time.perf_counter()
        yield
        # Kilobytes on Linux, bytes on macOS.
        unit = 2**30 if sys.platform == "darwin" else 2**20
        peak_GB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        self.rows.append((name, time.perf_counter() - start, peak_GB))


def run_demo(
    out: Path, simulation: SimulateConfig, *, steps: int, console: Console, overwrite: bool = False
) -> dict[str, Any]:
    """Simulate, inspect, train, reconstruct, refine, evaluate and draw into `out`.

    Writes scan.npz, scan.png, run/, the network's image.npz and the refined refined.npz with their PNGs, frc.png and
    report.html of the refined one, overview.png, report.md and demo.json.

    Arguments:
        overwrite: replace an earlier demo in the folder; any other folder is left alone.

    Returns:
        the content of demo.json: times, metrics, the scan, configuration and versions.

    Raises:
        ConfigError: `out` exists and may not be replaced, or cannot be written to.
    """
    check_output_folder(out, option="--out")
    if out.exists() and any(out.iterdir()):
        if not (out / _MARKER_FILE).exists():
            raise ConfigError(f"{out}: exists and is not an earlier demo. Choose another folder with --out.")
        if not overwrite:
            raise ConfigError(f"{out}: holds an earlier demo. Choose another folder, or replace it with --overwrite.")
    config = RunConfig(train=TrainConfig(steps=steps))
    timed = _StepTimer(console)
    with timed.step("start (import torch and lightning)"):
        from torchptycho.analysis.evaluation import evaluate
        from torchptycho.analysis.inspection import inspect_scan
        from torchptycho.core.versions import collect_versions
        from torchptycho.data.simulation import simulate
        from torchptycho.io import read_scan, write_reconstruction, write_scan
        from torchptycho.reconstructors.iterative import refine
        from torchptycho.reconstructors.network_reconstruction import reconstruct
        from torchptycho.training.train import read_history, train
        from torchptycho.visualization.plot import plot_frc, plot_history, plot_overview, plot_reconstruction, plot_scan
        from torchptycho.visualization.report import write_report
    with timed.step("simulate"):
        simulated = simulate(simulation)
        # Only now: if the simulation fails, an earlier demo stays unchanged.
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / _MARKER_FILE).write_text("{}", encoding="utf-8")
        write_scan(simulated, out / "scan.npz")
    with timed.step("inspect"):
        scan = read_scan(out / "scan.npz")
        summary = inspect_scan(scan)
        plot_scan(scan, out / "scan.png")
    with timed.step(f"train ({steps} steps)"):
        result = train(scan, config, out / "run")
        plot_history(read_history(out / "run"), out / "run" / "history.png")
    with timed.step("reconstruct"):
        image = reconstruct(result.checkpoint, scan)
        write_reconstruction(image, out / "image.npz")
    with timed.step("refine"):
        refined = refine(scan, image, config=config.refine)
        write_reconstruction(refined, out / "refined.npz")
    with timed.step("evaluate"):
        assert scan.truth is not None
        images = {name: (made, evaluate(made, scan.truth)) for name, made in (("network", image), ("refined", refined))}
    with timed.step("draw"):
        for name, (made, metrics) in zip(("image", "refined"), images.values(), strict=True):
            plot_reconstruction(made, out / f"{name}.png", truth=scan.truth, metrics=metrics)
        plot_frc(images["refined"][1], out / "frc.png")
        overview = plot_overview(scan, images, out / "overview.png")
        page = write_report(refined, scan, out / "report.html", history=read_history(out / "run"))

    table = make_table("step", "seconds", "peak memory so far (GB)")
    for name, seconds, peak_GB in timed.rows:
        table.add_row(name, f"{seconds:.1f}", f"{peak_GB:.2f}")
    console.print(table)
    for name, (_, metrics) in images.items():
        console.print(f"{name}:")
        console.print(make_metrics_table(metrics))
    report = {
        "steps": [{"name": n, "seconds": round(s, 2), "peak_GB": round(m, 3)} for n, s, m in timed.rows],
        "metrics": {name: metrics.to_dict() for name, (_, metrics) in images.items()},
        "scan": summary.to_dict(),
        "simulation": to_dict(simulation),
        "config": to_dict(config),
        "versions": collect_versions(),
    }
    (out / _MARKER_FILE).write_text(to_json(report), encoding="utf-8")
    (out / "report.md").write_text(
        _make_report(timed, {name: metrics.to_dict() for name, (_, metrics) in images.items()}), encoding="utf-8"
    )
    console.print(f"picture: {overview}   report: {page}")
    return report


def _make_report(timed: _StepTimer, metrics: dict[str, dict[str, object]]) -> str:
    lines = ["# torchptycho demo", "", "![overview](overview.png)", "", "| step | seconds | peak memory so far (GB) |"]
    lines += ["|---|---|---|", *(f"| {n} | {s:.1f} | {m:.2f} |" for n, s, m in timed.rows), ""]
    lines += [f"| metric | {' | '.join(metrics)} |", "|---|" + "---|" * len(metrics)]
    for name, value in next(iter(metrics.values())).items():
        if isinstance(value, (int, float)):
            lines.append(f"| {name} | {' | '.join(format_value(of_image[name]) for of_image in metrics.values())} |")
    lines += [
        "",
        "![image](image.png)",
        "",
        "![refined](refined.png)",
        "",
        "![frc](frc.png)",
        "",
        "![scan](scan.png)",
        "",
    ]
    return "\n".join(lines)
