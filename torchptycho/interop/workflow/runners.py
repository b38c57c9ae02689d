"""Training and reconstruction by the functions that scripts of the original call."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from torchptycho.core.config import RunConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.grouping.neighbours import neighbor_count
from torchptycho.interop.workflow.container import PtychoDataContainer
from torchptycho.interop.workflow.original_config import OriginalSettings, read_settings, to_original_names
from torchptycho.interop.workflow.prediction import PatchPlacement, Results, predict_patches
from torchptycho.interop.workflow.raw_data import RawData
from torchptycho.models.bundles import BUNDLE, load_bundle, save_bundle
from torchptycho.models.checkpoints import load_checkpoint
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.training.train import read_history, train

__all__ = [
    "Data",
    "as_scan",
    "create_ptycho_data_container",
    "load_inference_bundle",
    "reassemble_cdi_image",
    "run_cdi_example",
    "train_cdi_model",
]

_log = logging.getLogger(__name__)

Data = Scan | RawData | PtychoDataContainer
"""Scans that these functions accept."""
# The original's names in a history, and this package's names of the metrics.
_HISTORY = {"train_loss": "train/loss_epoch", "val_loss": "val/loss"}


def run_cdi_example(
    train_data: Data,
    test_data: Data | None,
    config: object,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int | None = 20,
    do_stitching: bool = False,
    *,
    out: str | Path | None = None,
    progress: bool = True,
) -> tuple[Float32[np.ndarray, "h w"] | None, Float32[np.ndarray, "h w"] | None, Results]:
    """Train on one scan, predict another, and stitch it if asked to.

    Arguments:
        test_data: None predicts nothing.
        config: a `RunConfig`, or a configuration of the original; see `run_config`.
        flip_x, flip_y, transpose, M: of the stitching, see `reassemble_cdi_image`.
        do_stitching: without it amplitude and phase are None.
        out, progress: see `train_cdi_model`.

    Returns:
        Amplitude and phase in radians of the stitched image, and the results of `train_cdi_model`; with stitching also
        those of `reassemble_cdi_image`.

    Raises:
        TypeError: the data or the configuration have a wrong type.
        TorchptychoError: a scan, the configuration or the folder cannot be used, or training has failed.
    """
    tested = None if test_data is None else _get_scan_and_numbers(test_data)
    results = _train(as_scan(train_data), read_settings(config), out, progress)
    results |= dict.fromkeys(("obj_tensor_full", "global_offsets", "coords_nominal", "nn_indices"))
    if tested is None:
        return None, None, results
    placement = PatchPlacement(flip_x=flip_x, flip_y=flip_y, transpose=transpose, M=M)
    predicted = predict_patches(
        results["models"]["diffraction_to_obj"], tested, config, placement, progress, stitch=do_stitching
    )
    results |= predicted
    return predicted.get("recon_amp"), predicted.get("recon_phase"), results


def train_cdi_model(
    train_data: Data,
    test_data: Data | None,
    config: object,
    *,
    out: str | Path | None = None,
    progress: bool = True,
) -> Results:
    """Train on one scan and predict another, which is not used in training.

    Arguments:
        config: a `RunConfig`, or a configuration of the original; see `run_config`.
        out: folder for the run (its subfolder `run`, or `run_2` and so on if that exists) and for the bundle
            wts.h5.zip; None uses the configuration's `output_dir`, and without it nothing is kept.
        progress: show a progress bar.

    Returns:
        `history`: loss of each epoch as `train_loss`, and of each validation as `val_loss`; `models`: the trained
        `PtychoPINN` as `diffraction_to_obj` (calling it predicts patches of the object) and as `autoencoder` (its
        `expected_counts` predicts the detector's counts); `backend`: "pytorch"; `bundle`: the file, or None. For the
        test scan, or None without one: `obj_tensor_full` c64 (B, C, N, N) patches of all frames in groups, `nn_indices`
        (B, C) numbers of these frames, `global_offsets` f64 (B, 1, 2, 1) means of their positions, `coords_nominal` f32
        (B, 1, 2, C) mean - position, with (x, y) on axis 2.

    Raises:
        TypeError: the data or the configuration have a wrong type.
        TorchptychoError: a scan, the configuration or the folder cannot be used, or training has failed.
    """
    return run_cdi_example(train_data, test_data, config, out=out, progress=progress)[2]


def reassemble_cdi_image(
    test_data: Data,
    config: object | None = None,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int | None = 20,
    coord_scale: float = 1.0,
    *,
    model: PtychoPINN,
    progress: bool = False,
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"], Results]:
    """Predict the patches of a scan and stitch them.

    The flips and the scale change where patches are placed, not the prediction. If the axes of the positions are
    reversed, correct them on reading, with `ReadConfig`.

    Arguments:
        config: whose section `reconstruct` is used; None uses the module's configuration.
        flip_x, flip_y: reverse x or y of the positions.
        transpose: exchange rows and columns of each patch.
        M: edge in pixels of the central square of each patch that is used; None uses whole patches, weighted as in
            `reconstruct`.
        coord_scale: factor of the positions.
        model: the trained module; there is no global one as in the original.

    Returns:
        Amplitude and phase in radians, 0 where there is no patch; and the results that `train_cdi_model` returns for a
        test scan, with `recon_amp`, `recon_phase`, and `reconstruction`, which has the position of the image. All
        coordinates and patches are those after flips, scale and transposition.

    Raises:
        TypeError: the data or the configuration have a wrong type.
        TorchptychoError: the scan cannot be used or does not fit the module.
    """
    placement = PatchPlacement(flip_x=flip_x, flip_y=flip_y, transpose=transpose, M=M, scale=coord_scale)
    results = predict_patches(model, _get_scan_and_numbers(test_data), config, placement, progress, stitch=True)
    return results["recon_amp"], results["recon_phase"], results


def load_inference_bundle(
    path: str | Path, *, trust_generator: bool | str = False
) -> tuple[PtychoPINN, dict[str, Any]]:
    """Load the trained module of a bundle, and its configuration under the original's names.

    Arguments:
        path: the file, or the folder that holds wts.h5.zip.
        trust_generator: as in `load_checkpoint`.

    Raises:
        StoreError: the file does not exist, is damaged, has another version, or was written by another program.
    """
    module = load_bundle(path, trust_generator=trust_generator)
    return module, to_original_names(module)


def as_scan(data: object) -> Scan:
    """Convert any of `Data` to a scan.

    Raises:
        TypeError: the data have another type.
    """
    return _get_scan_and_numbers(data)[0]


def create_ptycho_data_container(data: Data, config: object) -> PtychoDataContainer:
    """Group the frames of a scan by the original's draws, as configured; return a container unchanged.

    Raises:
        TypeError: the data or the configuration have a wrong type.
        TorchptychoError: the configuration is invalid, or the groups cannot be formed.
    """
    if isinstance(data, PtychoDataContainer):
        return data
    scan, run = as_scan(data), read_settings(config).run
    group = run.group
    n_frames = min(group.n_subsample or scan.n_frames, scan.n_frames)
    n_groups = group.n_groups or n_frames
    return PtychoDataContainer.from_raw_data(
        data if isinstance(data, RawData) else RawData.from_scan(scan),
        nphotons=run.prepare.nphotons if scan.domain == "amplitude" else None,
        gridsize=group.gridsize,
        K=neighbor_count(group),
        nsamples=n_groups if group.oversample else min(n_groups, n_frames),
        seed=group.group_seed,
        sequential_sampling=group.sequential,
        enable_oversampling=group.oversample,
        n_subsample=n_frames,
        subsample_seed=group.subsample_seed,
    )


def _train(scan: Scan, settings: OriginalSettings, out: str | Path | None, progress: bool) -> Results:
    if settings.n_px not in (None, scan.n_px):
        raise ScanError(
            scan.source,
            "diff3d",
            expected=f"frames of N = {settings.n_px} px, as configured",
            found=f"N = {scan.n_px}",
            remedy="Correct N, or crop the frames on reading: ReadConfig(crop_px=...).",
        )
    run = _limit_to_scan(settings.run, scan)
    folder = settings.output_dir if out is None else Path(out)
    with _open_run_folder(folder) as run_folder:
        trained = train(scan, run, run_folder, progress=progress)
        module = load_checkpoint(trained.checkpoint, trust_generator=run.model.generator)
        metrics = read_history(run_folder)
    bundle = None if folder is None else save_bundle(module, folder / BUNDLE)
    history = {name: [value for _, value in metrics[metric]] for name, metric in _HISTORY.items() if metric in metrics}
    models = {"autoencoder": module, "diffraction_to_obj": module}
    return {"history": history, "models": models, "backend": "pytorch", "bundle": bundle}


@contextlib.contextmanager
def _open_run_folder(folder: Path | None) -> Iterator[Path]:
    """Choose an unused name for a run inside `folder`, or inside a temporary folder that the block's end removes."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=".torchptycho-") as temporary:
            yield Path(temporary) / "run"
        return
    names = (f"run{'' if number == 1 else f'_{number}'}" for number in range(1, 1_000_000))
    yield next(folder / name for name in names if not (folder / name).exists())


def _limit_to_scan(run: RunConfig, scan: Scan) -> RunConfig:
    """Replace numbers of frames and groups above the number of training frames by all of them, as the original does."""
    group = run.group
    held_out = min(round(run.prepare.val_fraction * scan.n_frames), max(0, scan.n_frames - group.gridsize**2))
    n_training = scan.n_frames - held_out
    changes: dict[str, Any] = {}
    if group.n_subsample is not None and group.n_subsample >= n_training:
        changes["n_subsample"] = None
    else:
        n_training = group.n_subsample or n_training
    if group.n_groups is not None and group.n_groups > n_training and not group.oversample:
        changes["n_groups"] = None
    if changes:
        _log.warning(
            "%s: more requested than the %d frames for training: %s; all are used",
            scan.source,
            n_training,
            ", ".join(f"{name} {getattr(group, name)}" for name in changes),
        )
    return dataclasses.replace(run, group=dataclasses.replace(group, **changes))


def _get_scan_and_numbers(data: object) -> tuple[Scan, np.ndarray | None]:
    """Return the scan, and the numbers of its frames in the original scan if a container holds only some of them."""
    if isinstance(data, Scan):
        return data, None
    if isinstance(data, RawData):
        return data.scan, None
    if isinstance(data, PtychoDataContainer):
        return data.as_scan(), data.frames_used
    raise TypeError(f"data: expected a Scan, a RawData or a PtychoDataContainer; found {type(data).__name__}")
