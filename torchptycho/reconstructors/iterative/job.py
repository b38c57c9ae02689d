"""A refinement from what it is given to its image: checked, shared by the devices, and run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex

from torchptycho.core.config import RefineConfig, as_config, to_dict
from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError
from torchptycho.core.launched import LaunchedProcess, find_launched_process
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.io.fingerprint import fingerprint_scan
from torchptycho.io.inputs import as_probe, as_reconstruction, as_scan
from torchptycho.io.scan_choice import refuse_several_scans
from torchptycho.io.storage.outputs import check_output_file
from torchptycho.reconstructors.iterative.initial_state import compute_start_margin_px, initialize_state
from torchptycho.reconstructors.iterative.position_search import plan_search, search_positions
from torchptycho.reconstructors.iterative.prior_steps import check_regularization
from torchptycho.reconstructors.iterative.problem import open_problem
from torchptycho.reconstructors.iterative.processes import (
    Notify,
    join_launched_group,
    open_folder,
    run_side_by_side,
    start_refinement,
)
from torchptycho.reconstructors.iterative.reducer import ONE_PROCESS, Reducer
from torchptycho.reconstructors.iterative.refinement import (
    EpochCallback,
    build_fingerprint,
    build_reconstruction,
    run_epochs,
)
from torchptycho.reconstructors.iterative.rpie import choose_batch_size
from torchptycho.reconstructors.iterative.shares import count_useful_processes
from torchptycho.reconstructors.iterative.start_matching import match_start
from torchptycho.reconstructors.iterative.state import RefinementState
from torchptycho.reconstructors.iterative.thick_object import check_slices, choose_spacing_m
from torchptycho.reconstructors.iterative.variable_probe import check_variation

__all__ = ["refine", "refine_side_by_side"]

_log = logging.getLogger(__name__)

ImageCallback = Callable[[Reconstruction], None]


def refine(
    scan: Scan | str | Path,
    start: Reconstruction | str | Path | None = None,
    *,
    probe: Complex[np.ndarray, "*p n n"] | str | Path | None = None,
    config: RefineConfig | dict[str, Any] | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    state_file: str | Path | None = None,
    resume: bool = False,
    on_epoch: EpochCallback | None = None,
    on_image: ImageCallback | None = None,
    image_every_epochs: int = 10,
    scratch: str | Path | None = None,
    judge: bool = True,
) -> Reconstruction:
    """Fit an image to the counts of a scan; without a start this is a plain iterative reconstruction.

    Ctrl+C ends it after the current batch with the image so far, and its provenance says so. The image is the same on
    several devices but for rounding, and so is the state, with which any number of them may go on.

    Arguments:
        scan: what was measured, or its file.
        start: an image of it to begin with, such as a trained network's, or its file; its probe and positions are taken
            over when it has them, resampled when energy, distance or detector were corrected since. None begins with a
            transparent object.
        probe: modes in sqrt(photons) that replace the scan's (and the start's) own.
        config: method, epochs, and what may change besides the object.
        device: "auto" takes a GPU when there is one; "gpu", "cpu", or another name that torch knows.
        devices: processes on this machine that share the frames, each with a GPU or a part of the CPU; fewer are used
            where more do not pay. They are spawned, so a script that uses several needs
            `if __name__ == "__main__":`, or are those that torchrun or srun has started.
        nodes: machines, on each of which torchrun or srun has started `devices` processes.
        state_file: where to write the state from time to time and at the end, for `resume`.
        resume: go on from that file, up to the configured epochs; begin, with a warning, where there is none yet.
        on_epoch: called with the number of each finished epoch and its misfit.
        on_image: shown the image so far, every `image_every_epochs` epochs before the last.
        scratch: folder for a temporary copy of frames that need more than 256 MB and that their file cannot give in any
            order, as a compressed NPZ.
        judge: warn when the fit cannot be right; the provenance says so in any case.

    Returns:
        the image on the canvas of all positions, with `probe`, `positions_px`, and in `history` for each epoch:
        `misfit` (mean squared deviation of the counts over that of photon noise: 1 is the limit, less is fitting the
        noise), `residual` (squared deviation of the amplitudes over the counts), `unexplained` (the part of the
        variation between frames that it leaves, without photon noise), `seconds` since the beginning, and with a
        prior its `regularization_strength` and, where held-out counts chose it, `held_out_gain` (log-likelihood of a
        held-out count above that without the prior); in `provenance` what `regularization` acted and how it was chosen.

    Raises:
        TorchptychoError: the scan is unusable, the start or the probe does not fit it, the state is another's, or one
            of several processes ended.
    """
    settings, scan = plan_search(as_config(RefineConfig, config)), as_scan(scan)
    if resume and state_file is None:
        raise ConfigError("resume: expected the state_file of an earlier refinement; found none.")
    refuse_several_scans(scan, "a refinement")
    launched = find_launched_process() if devices * nodes > 1 else None
    is_first = launched is None or launched.rank == 0
    if state_file is not None and is_first:
        check_output_file(state_file, option="state_file")
    check_regularization(settings)
    check_variation(settings, scan.n_frames)
    check_slices(settings, scan)
    places = _choose_devices(scan, settings, device, devices, nodes, launched)
    job = RefinementJob(
        scan=scan,
        start=None if start is None else match_start(as_reconstruction(start, "start"), scan),
        probe=None if probe is None else as_probe(probe, scan.n_px),
        config=settings,
        digest=fingerprint_scan(scan),
        fingerprint={} if state_file is None else build_fingerprint(scan, settings),
        state_file=None if state_file is None else Path(state_file),
        resume=resume,
        image_every_epochs=None if on_image is None else image_every_epochs,
        scratch=None if scratch is None else Path(scratch),
    )

    def take_news(kind: str, content: Any) -> None:
        if kind == "epoch" and on_epoch is not None:
            on_epoch(*content)
        elif kind == "image" and on_image is not None:
            on_image(content)

    if launched is not None:
        with join_launched_group(launched, places[0]) as (place, reducer):
            result = _run_job(job, place, reducer, take_news)
    elif len(places) == 1:
        result = _run_job(job, places[0], ONE_PROCESS, take_news)
    else:
        with open_folder(scratch) as folder:
            (result,) = run_side_by_side([start_refinement(_run_job, job, places, folder, take_news)])
    for fault in result.provenance["warnings"] if judge and is_first else ():
        _log.warning("%s", fault)
    return result


def refine_side_by_side(
    scans: list[Scan], *, config: RefineConfig, device: str = "auto", devices: int = 2
) -> list[Reconstruction]:
    """Refine several scans from a uniform object at the same time, each on its part of the devices of this machine.

    Raises:
        TorchptychoError: as in `refine`.
        KeyboardInterrupt: interrupted before there was an image of each.
    """
    config = plan_search(config)
    check_regularization(config)
    for scan in scans:
        check_variation(config, scan.n_frames)
        check_slices(config, scan)
    found = find_devices(device, devices, option="device")
    each = len(found) // len(scans)
    with contextlib.ExitStack() as stack:
        runs = []
        for number, scan in enumerate(scans):
            useful = count_useful_processes(each, choose_batch_size(config, scan.n_frames))
            places = found[number * each :][:useful]
            job = RefinementJob(scan=scan, config=config, digest=fingerprint_scan(scan))
            runs.append(start_refinement(_run_job, job, places, stack.enter_context(open_folder(None))))
        return run_side_by_side(runs)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RefinementJob:
    """What a refinement is given, checked. Other processes can be sent it."""

    scan: Scan
    config: RefineConfig
    digest: str
    start: Reconstruction | None = None
    probe: np.ndarray | None = None
    fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
    state_file: Path | None = None
    resume: bool = False
    image_every_epochs: int | None = None
    scratch: Path | None = None

    @property
    def margin_px(self) -> int:
        """Room around the canvas for positions that move, or have moved."""
        if self.config.position_update != "none":
            return math.ceil(self.config.position_limit_px)
        return compute_start_margin_px(self.scan, self.start)


def _choose_devices(
    scan: Scan, config: RefineConfig, device: str, devices: int, nodes: int, launched: LaunchedProcess | None
) -> list[torch.device]:
    """Choose the devices of this machine: no more than pay, one for a process that a launcher has started."""
    if launched is None and nodes > 1:
        raise ConfigError(
            f"nodes: expected 1, or processes that torchrun or srun has started on {nodes} machines; found none."
        )
    if launched is not None:
        launched.check(devices, nodes)
    found = find_devices(device, devices if launched is None else 1, option="device")
    batch_size = choose_batch_size(config, scan.n_frames)
    useful = count_useful_processes(devices * nodes, batch_size)
    if useful < devices * nodes and (launched is None or launched.rank == 0):
        _log.warning(
            "%s: devices: %s: batches of %d of its %d frames do not keep more busy. A larger batch_size needs more "
            "epochs.",
            scan.source,
            f"{useful} of {devices} used" if launched is None else f"{useful} would do for the {launched.size} started",
            batch_size,
            scan.n_frames,
        )
    return found[:useful] if launched is None else found


def _run_job(job: RefinementJob, device: torch.device, reducer: Reducer, notify: Notify) -> Reconstruction:
    """Refine in one process, or in one of several; the first one sends its news and writes the state."""
    scan, config = job.scan, job.config
    with (
        torch.no_grad(),
        open_problem(
            scan,
            margin_px=job.margin_px,
            device=device,
            scratch=job.scratch,
            reducer=reducer,
            slice_spacing_m=choose_spacing_m(config, scan),
        ) as problem,
    ):
        if job.state_file is not None and _can_resume(job.state_file, resume=job.resume):
            state = RefinementState.load(job.state_file, job.fingerprint, device)
        else:
            state = initialize_state(problem, scan, job.start, job.probe, config)
            if config.position_search_px:
                begun = time.perf_counter()
                search_positions(problem, state, config, scan.source)
                state.seconds += time.perf_counter() - begun
        reducer.check_same({"scan": job.digest, "refine": to_dict(config), "epochs of the state": state.epoch})
        state.copy_from_first(reducer)

        def report_epoch(epoch: int, misfit: float) -> None:
            if reducer.rank:
                return
            notify("epoch", (epoch, misfit))
            every = job.image_every_epochs
            if every is not None and epoch % every == 0 and epoch < config.epochs:
                notify("image", build_reconstruction(problem, scan, state, config, False, job.digest))

        state_file = job.state_file if reducer.rank == 0 else None
        complete = run_epochs(problem, scan, state, config, report_epoch, state_file, job.fingerprint)
        return build_reconstruction(problem, scan, state, config, complete, job.digest)


def _can_resume(state_file: Path, *, resume: bool) -> bool:
    """Return whether to continue; a job script may ask for it before there is a state."""
    if not resume or state_file.exists():
        return resume
    _log.warning("%s: no state to resume from yet; refinement begins from the start.", state_file)
    return False
