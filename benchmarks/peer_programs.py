"""Run one program on one scan in a separate process, started by `peers.py`.

    python benchmarks/peer_programs.py "pty-chi LSQML" scan.npz found.npz --epochs 10 20 40 --threads 2

The scan holds `frames` (counts, zero frequency in the middle), `positions_px` (y, x; of patch pixel N/2),
`probe` in sqrt(photons) and `probe_update` (false: it is
known). The output contains, for each number of epochs, the object, the position
of its first pixel, seconds, and the misfit by the program's own model of the experiment. Seconds include the setup of
the program and its iterations, but not imports, one epoch beforehand (for one-time work of libraries) and reading the
scan. Each program uses the settings of its own documentation, examples or tests.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import io
import logging
import math
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What every program is given; `probe_update` is false where the probe is known."""

    frames: np.ndarray
    positions_px: np.ndarray
    probe: np.ndarray
    probe_update: bool

    @property
    def n_px(self) -> int:
        return int(self.frames.shape[-1])

    def middle_px(self) -> np.ndarray:
        """A whole pixel near the middle of the positions."""
        return np.rint((self.positions_px.max(0) + self.positions_px.min(0)) / 2)


@dataclasses.dataclass(frozen=True, eq=False)
class ProgramResult:
    """An image after a number of epochs; `expected` gives the counts that it predicts for frames by their index."""

    epochs: int
    seconds: float
    object: np.ndarray
    origin_px: np.ndarray
    expected: Callable[[np.ndarray], np.ndarray]


Program = Callable[[Task, list[int]], Iterator[ProgramResult]]


class Clock:
    """Adds up the time inside its `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun


def run_torchptycho(task: Task, epochs: list[int], method: str, **options: Any) -> Iterator[ProgramResult]:
    """Each number of epochs is a run of its own, because the schedule depends on it."""
    import torch

    from torchptycho.core.config import RefineConfig
    from torchptycho.core.reconstruction import get_frame_probe
    from torchptycho.physics.patches import extract, locate_corner
    from torchptycho.reconstructors.iterative import refine

    for count in epochs:
        clock = Clock()
        with clock:
            config = RefineConfig(
                method=method,
                epochs=count,
                probe_update=task.probe_update,
                patience=None,
                regularization="none",
                **options,
            )
            image = refine(make_scan(task), config=config, device="cpu")
        assert image.probe is not None

        def expected(index: np.ndarray, image: Any = image) -> np.ndarray:
            corners = locate_corner(torch.from_numpy(image.positions_px[index]), task.n_px, image.origin_px)
            patches = extract(torch.from_numpy(image.object), corners.float(), task.n_px)
            probes = np.stack([get_frame_probe(image, frame) for frame in index.tolist()])
            waves = torch.fft.fft2(patches[:, None] * torch.from_numpy(probes), norm="ortho")
            return torch.fft.fftshift(waves.abs().square().sum(1), dim=(-2, -1)).numpy()

        yield ProgramResult(count, clock.seconds, image.object, np.array(image.origin_px), expected)


def make_scan(task: Task) -> Any:
    from torchptycho.core.scan import ArrayFrames, Scan

    return Scan(
        frames=ArrayFrames(task.frames),
        domain="counts",
        positions_px=task.positions_px,
        probe=task.probe[None],
        mask=np.ones((task.n_px, task.n_px), bool),
        scan_id=np.zeros(len(task.frames), np.int64),
        probe_is_calibrated=True,
    )


def run_plain_pie(task: Task, epochs: list[int], batch_size: int = 16, alpha: float = 0.1) -> Iterator[ProgramResult]:
    """A few dozen lines of torch: regularised PIE, frames of a batch at once, no momentum.

    Maiden, Johnson, Li, Optica 4, 736 (2017).
    """
    import torch

    from torchptycho.physics.patches import extract_inside, place_inside

    clock = Clock()
    with clock, torch.no_grad():
        counts = torch.from_numpy(np.fft.ifftshift(task.frames, axes=(-2, -1)).astype(np.float32))
        probe = torch.from_numpy(task.probe)
        low = np.floor(task.positions_px.min(0)) - task.n_px // 2
        size = np.floor(task.positions_px.max(0)) - np.floor(task.positions_px.min(0)) + task.n_px + 1
        corners = torch.from_numpy(task.positions_px - task.n_px // 2 - low).float()
        image = torch.ones([int(edge) for edge in size], dtype=torch.complex64)
        generator = torch.Generator().manual_seed(0)
    for epoch in range(1, max(epochs) + 1):
        with clock, torch.no_grad():
            for index in torch.randperm(len(counts), generator=generator).split(batch_size):
                patches = extract_inside(image, corners[index], task.n_px)
                wave = torch.fft.fft2(patches * probe, norm="ortho")
                wave = wave * (counts[index].sqrt() / wave.abs().clamp_min(1e-9) - 1)
                change = torch.fft.ifft2(wave, norm="ortho")
                power = probe.abs().square()
                numerator, denominator = torch.zeros_like(image), torch.zeros_like(image.real)
                place_inside(numerator, change * probe.conj(), corners[index])
                place_inside(denominator, power.expand(len(index), -1, -1), corners[index])
                image = image + numerator / ((1 - alpha) * denominator + alpha * denominator.max())
                if task.probe_update:
                    light = patches.abs().square().sum(0)
                    towards = (change * patches.conj()).sum(0)
                    probe = probe + towards / ((1 - alpha) * light + alpha * light.max())
        if epoch in epochs:

            def expected(index: np.ndarray, image: torch.Tensor = image, probe: torch.Tensor = probe) -> np.ndarray:
                waves = torch.fft.fft2(extract_inside(image, corners[index], task.n_px) * probe, norm="ortho")
                return torch.fft.fftshift(waves.abs().square(), dim=(-2, -1)).numpy()

            yield ProgramResult(epoch, clock.seconds, image.numpy(), low, expected)


def run_pty_chi(
    task: Task,
    epochs: list[int],
    engine: str,
    batches: int,
    opr_modes: int = 0,
    positions: bool = False,
    **options: Any,
) -> Iterator[ProgramResult]:
    """pty-chi: unnormalised transforms, positions about the middle of the object, far field shifted by itself.

    Its authors' scripts cut a scan into 10 batches. rPIE diverges with batches of its default size (100) where many
    frames of a batch overlap; in 40 batches it does not. Modes of a variable probe begin as its own functions make
    them, with the intensity of each frame.
    """
    import torch

    _offer_gaussian_blur()
    import ptychi.api as api
    from ptychi.api.task import PtychographyTask
    from ptychi.utils import add_additional_opr_probe_modes_to_probe, generate_initial_opr_mode_weights

    clock = Clock()
    with clock:
        middle = task.middle_px()
        offset = task.positions_px - middle
        # Half of it is whole, so that the middle of the array is where pty-chi counts from.
        size = [2 * (math.ceil(float(np.abs(offset[:, axis]).max())) + task.n_px // 2 + 2) for axis in (0, 1)]
        settings = {"lsqml": api.LSQMLOptions, "rpie": api.RPIEOptions}[engine]()
        settings.reconstructor_options.num_epochs = max(epochs)
        settings.reconstructor_options.batch_size = math.ceil(len(task.frames) / batches)
        settings.reconstructor_options.default_device = api.Devices.CPU
        settings.reconstructor_options.random_seed = 0
        settings.probe_options.optimizable = task.probe_update
        if engine == "lsqml" and not task.probe_update:
            settings.reconstructor_options.rescale_probe_intensity_in_first_epoch = False
        for name, value in options.items():
            setattr(settings.reconstructor_options, name, value)
        probe, weights = torch.from_numpy(task.probe / task.n_px)[None, None], None
        if opr_modes:
            torch.manual_seed(0)
            settings.opr_mode_weight_options.optimizable = True
            settings.opr_mode_weight_options.optimize_intensity_variation = True
            probe = add_additional_opr_probe_modes_to_probe(probe, opr_modes)
            weights = generate_initial_opr_mode_weights(len(task.frames), 1 + opr_modes)
        settings.probe_position_options.optimizable = positions
        running = PtychographyTask(
            settings,
            diffraction_data=torch.from_numpy(task.frames.astype(np.float32)),
            object_data=torch.ones([1, *size], dtype=torch.complex64),
            probe_data=probe,
            probe_position_y_px=torch.from_numpy(offset[:, 0]).float(),
            probe_position_x_px=torch.from_numpy(offset[:, 1]).float(),
            **({} if weights is None else {"opr_mode_weights_data": weights}),
        )

    def expected(index: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            model = running.reconstructor.forward_model
            return torch.fft.fftshift(model(torch.from_numpy(index)), dim=(-2, -1)).numpy()

    done = 0
    for count in epochs:
        with clock:
            running.run(count - done)
        done = count
        found = running.get_data_to_cpu("object", as_numpy=True)[0].copy()
        yield ProgramResult(count, clock.seconds, found, middle - np.array(size) // 2, expected)


def _offer_gaussian_blur() -> None:
    """The one thing that pty-chi imports from torchvision, and uses for random first objects only."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    transforms = types.ModuleType("torchvision.transforms")
    transforms.GaussianBlur = None  # type: ignore[attr-defined]
    package = types.ModuleType("torchvision")
    package.transforms = transforms  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": package, "torchvision.transforms": transforms}


def run_ptylab(task: Task, epochs: list[int]) -> Iterator[ProgramResult]:
    """PtyLab's mPIE: positions in metres, rounded to whole pixels; its lengths are set so that a pixel is 1e-8 m."""
    import PtyLab

    clock = Clock()
    with clock:
        np.random.seed(0)
        pixel_m = 1e-8
        data = PtyLab.ExperimentalData("test:nodata")
        data.ptychogram = task.frames.astype(np.float32)
        data.wavelength, data.zo = 1e-9, 1.0
        data.dxd = data.wavelength * data.zo / (task.n_px * pixel_m)
        middle = task.middle_px()
        data.encoder = (task.positions_px - middle) * pixel_m
        data._setData()
        params = PtyLab.Params()
        params.positionOrder = "random"
        params.propagatorType = "Fraunhofer"
        params.fftshiftSwitch = True
        params.probePowerCorrectionSwitch = task.probe_update
        state = PtyLab.Reconstruction(data, params)
        state.initialProbe, state.initialObject = "circ", "ones"
        state.initializeObjectProbe()
        state.probe[...] = task.probe
        engine = PtyLab.Engines.mPIE(state, data, params, PtyLab.DummyMonitor())
        if not task.probe_update:
            engine.betaProbe = 0.0

    def expected(index: np.ndarray) -> np.ndarray:
        cut = [state.object[0, 0, 0, 0, y : y + task.n_px, x : x + task.n_px] for y, x in state.positions[index]]
        waves = np.fft.fft2(np.stack(cut) * state.probe[0, 0, 0, 0], norm="ortho")
        return np.fft.fftshift(np.abs(waves) ** 2, axes=(-2, -1))

    done = 0
    for count in epochs:
        with clock:
            engine.numIterations = count - done
            engine.reconstruct()
        done = count
        yield ProgramResult(count, clock.seconds, state.object[0, 0, 0, 0].copy(), middle - state.No // 2, expected)


PROGRAMS: dict[str, Program] = {
    "torchptycho rpie": functools.partial(run_torchptycho, method="rpie"),
    "torchptycho rpie, amplitude": functools.partial(run_torchptycho, method="rpie", likelihood="amplitude"),
    "torchptycho lsqml": functools.partial(run_torchptycho, method="lsqml"),
    "torchptycho gradient": functools.partial(run_torchptycho, method="gradient"),
    "torchptycho rpie, OPR": functools.partial(run_torchptycho, method="rpie", opr_modes=3, frame_scale=True),
    "torchptycho lsqml, OPR": functools.partial(run_torchptycho, method="lsqml", opr_modes=3, frame_scale=True),
    "torchptycho gradient, OPR": functools.partial(run_torchptycho, method="gradient", opr_modes=3, frame_scale=True),
    "torchptycho rpie, OPR, positions": functools.partial(
        run_torchptycho, method="rpie", opr_modes=3, frame_scale=True, position_update="frames"
    ),
    "plain PIE": run_plain_pie,
    "pty-chi LSQML": functools.partial(run_pty_chi, engine="lsqml", batches=10),
    "pty-chi LSQML momentum": functools.partial(
        run_pty_chi, engine="lsqml", batches=10, batching_mode="compact", momentum_acceleration_gain=0.5
    ),
    "pty-chi LSQML, OPR": functools.partial(run_pty_chi, engine="lsqml", batches=10, opr_modes=3),
    "pty-chi LSQML, OPR, momentum": functools.partial(
        run_pty_chi,
        engine="lsqml",
        batches=10,
        opr_modes=3,
        batching_mode="compact",
        momentum_acceleration_gain=0.5,
    ),
    "pty-chi LSQML, OPR, positions": functools.partial(
        run_pty_chi, engine="lsqml", batches=10, opr_modes=3, positions=True
    ),
    "pty-chi rPIE": functools.partial(run_pty_chi, engine="rpie", batches=40),
    "PtyLab mPIE": run_ptylab,
}


def compute_misfit(task: Task, expected: Callable[[np.ndarray], np.ndarray]) -> float:
    """Squared deviation of the counts over that of photon noise: sum (y - I)^2 / (I + 1) over sum I / (I + 1)."""
    found = noise = 0.0
    for index in np.array_split(np.arange(len(task.frames)), math.ceil(len(task.frames) / BATCH)):
        intensity = expected(index).astype(np.float64)
        found += float(np.sum((task.frames[index] - intensity) ** 2 / (intensity + 1)))
        noise += float(np.sum(intensity / (intensity + 1)))
    return found / noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=list(PROGRAMS))
    parser.add_argument("scan", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    # Before NumPy's and torch's libraries start theirs; torch asks for it below, too.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    with np.load(options.scan, allow_pickle=False) as file:
        task = Task(file["frames"], file["positions_px"], file["probe"], bool(file["probe_update"]))
    program = PROGRAMS[options.program]
    written: dict[str, Any] = {"epochs": options.epochs}
    # What they say on the way is theirs.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for _ in program(task, [1]):
            pass
        for number, found in enumerate(program(task, sorted(options.epochs))):
            written |= {
                f"object_{number}": found.object.astype(np.complex64),
                f"origin_px_{number}": np.asarray(found.origin_px, np.int64),
                f"seconds_{number}": found.seconds,
                f"misfit_{number}": compute_misfit(task, found.expected),
            }
    np.savez(options.out, **written)


if __name__ == "__main__":
    main()
