"""Training and reconstruction in the calls that scripts of the original make."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from torchptycho.core.config import RunConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.grouping.neighbours import neighbor_count
from torchptycho.data.inference_dataset import InferenceBatch
from torchptycho.interop import original_layouts
from torchptycho.interop.workflow.container import PtychoDataContainer
from torchptycho.interop.workflow.original_config import OriginalSettings, read_settings, to_original_names
from torchptycho.interop.workflow.raw_data import RawData
from torchptycho.models.bundles import BUNDLE, load_bundle, save_bundle
from torchptycho.models.checkpoints import load_checkpoint
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.reconstructors.stitcher import PatchStitcher
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
"""What these functions take."""
Results = dict[str, Any]
# Names under which a history is told, and those of the metrics here.
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
        config: a `RunConfig`, or a configuration of the original, see `run_config`.
        flip_x, flip_y, transpose, M: of the stitching, see `reassemble_cdi_image`.
        do_stitching: without it amplitude and phase are None.
        out, progress: see `train_cdi_model`.

    Returns:
        Amplitude and phase in radians of the stitched image, and what `train_cdi_model` returns with, after stitching,
        what `reassemble_cdi_image` returns.

    Raises:
        TypeError: the data or the configuration are of another kind.
        TorchptychoError: scans, configuration or folder do not allow it, or training has gone wrong.
    """
    tested = None if test_data is None else _get_scan_and_numbers(test_data)
    results = _train(as_scan(train_data), read_settings(config), out, progress)
    results |= dict.fromkeys(("obj_tensor_full", "global_offsets", "coords_nominal", "nn_indices"))
    if tested is None:
        return None, None, results
    placement = _PatchPlacement(flip_x=flip_x, flip_y=flip_y, transpose=transpose, M=M)
    predicted = _predict(
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
    """Train on one scan, and predict another. The second is not looked at in training.

    Arguments:
        config: a `RunConfig`, or a configuration of the original, see `run_config`.
        out: folder for the run, under the name `run` with a number behind it where that is taken, and for the bundle
            wts.h5.zip; None takes the configuration's `output_dir`, and without that nothing is kept.
        progress: show a progress bar.

    Returns:
        `history`: loss of each epoch as `train_loss`, and of each validation as `val_loss`; `models`: the trained
        `PtychoPINN` as `diffraction_to_obj` (called, it predicts patches of the object) and as `autoencoder` (its
        `expected_counts` goes on to the detector); `backend`: "pytorch"; `bundle`: the file, or None. Of the test
        scan, None without one: `obj_tensor_full` c64 (B, C, N, N) patches of all its frames in groups, `nn_indices`
        (B, C) which frames these are, `global_offsets` f64 (B, 1, 2, 1) means of their positions, `coords_nominal` f32
        (B, 1, 2, C) mean - position, with (x, y) on axis 2.

    Raises:
        TypeError: the data or the configuration are of another kind.
        TorchptychoError: scans, configuration or folder do not allow it, or training has gone wrong.
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

    The flips and the scale change the places at which patches are laid, not what is predicted; positions whose axes
    run the other way are put right as they are read, with `ReadConfig`.

    Arguments:
        config: whose section `reconstruct` says how; None takes what the module was trained with.
        flip_x, flip_y: reverse x or y of the positions.
        transpose: exchange rows and columns of each patch.
        M: edge in pixels of the square in the middle of each patch that is used; None uses all of it, weighted as
            `reconstruct` does.
        coord_scale: factor of the positions.
        model: the trained module; there is no other that it could be.

    Returns:
        Amplitude and phase in radians, 0 where no patch lies; and, beside what `train_cdi_model` tells of a test scan,
        `recon_amp`, `recon_phase`, and `reconstruction` with the place of the image. All coordinates are those at
        which patches were laid, patches as they were laid.

    Raises:
        TypeError: the data or the configuration are of another kind.
        TorchptychoError: the scan is unusable, or does not fit the module.
    """
    placement = _PatchPlacement(flip_x=flip_x, flip_y=flip_y, transpose=transpose, M=M, scale=coord_scale)
    results = _predict(model, _get_scan_and_numbers(test_data), config, placement, progress, stitch=True)
    return results["recon_amp"], results["recon_phase"], results


def load_inference_bundle(path: str | Path) -> tuple[PtychoPINN, dict[str, Any]]:
    """The trained module in a bundle, and what it was made with under the original's names.

    Arguments:
        path: the file, or the folder that holds wts.h5.zip.

    Raises:
        StoreError: not there, damaged, of another version, or written by another program.
    """
    module = load_bundle(path)
    return module, to_original_names(module)


def as_scan(data: object) -> Scan:
    """The scan in any of `Data`.

    Raises:
        TypeError: it is something else.
    """
    return _get_scan_and_numbers(data)[0]


def create_ptycho_data_container(data: Data, config: object) -> PtychoDataContainer:
    """The groups of a scan as the configuration asks for them, by the original's draws; a container as it is.

    Raises:
        TypeError: the data or the configuration are of another kind.
        TorchptychoError: the configuration has a mistake, or the groups cannot be formed.
    """
    if isinstance(data, PtychoDataContainer):
        return data
    scan, run = as_scan(data), read_settings(config).run
    group = run.group
    kept = min(group.n_subsample or scan.n_frames, scan.n_frames)
    wanted = group.n_groups or kept
    return PtychoDataContainer.from_raw_data(
        data if isinstance(data, RawData) else RawData.from_scan(scan),
        nphotons=run.prepare.nphotons if scan.domain == "amplitude" else None,
        gridsize=group.gridsize,
        K=neighbor_count(group),
        nsamples=wanted if group.oversample else min(wanted, kept),
        seed=group.group_seed,
        sequential_sampling=group.sequential,
        enable_oversampling=group.oversample,
        n_subsample=kept,
        subsample_seed=group.subsample_seed,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PatchPlacement:
    """How patches are laid; see `reassemble_cdi_image`."""

    flip_x: bool
    flip_y: bool
    transpose: bool
    M: int | None
    scale: float = 1.0

    def transform_positions(self, positions_px: np.ndarray) -> Float64[np.ndarray, "*lead 2"]:
        """Where positions (y, x) come to lie."""
        signs = np.array([-1.0 if self.flip_y else 1.0, -1.0 if self.flip_x else 1.0])
        return np.asarray(positions_px * signs * self.scale)

    def transform_patches(self, patches: Tensor) -> Tensor:
        return patches.mT.contiguous() if self.transpose else patches

    @property
    def is_identity(self) -> bool:
        return not (self.flip_x or self.flip_y or self.transpose) and self.scale == 1 and self.M is None

    def make_window(self, n_px: int) -> Tensor:
        """[N, N], 1 on the central M x M."""
        assert self.M is not None
        if not 2 <= self.M <= n_px or self.M % 2:
            raise ConfigError(f"M: expected an even number from 2 to N = {n_px}, or None; found {self.M}.")
        return torch.nn.functional.pad(torch.ones(self.M, self.M), ((n_px - self.M) // 2,) * 4)


class _PatchCollector:
    """Keeps what is predicted, and the groups that it was predicted for."""

    def __init__(self) -> None:
        self.patches: list[Tensor] = []
        self.members: list[Tensor] = []
        self.is_first: list[Tensor] = []

    def __call__(self, batch: InferenceBatch, patches: Tensor) -> None:
        # By NumPy: what inference mode has made takes no part in anything later.
        self.patches.append(torch.from_numpy(patches.cpu().numpy().copy()))
        self.members.append(batch.members.cpu())
        self.is_first.append(batch.is_first.cpu())


def _train(scan: Scan, settings: OriginalSettings, out: str | Path | None, progress: bool) -> Results:
    if settings.n_px not in (None, scan.n_px):
        raise ScanError(
            scan.source,
            "diff3d",
            expected=f"frames of N = {settings.n_px} px, as configured",
            found=f"N = {scan.n_px}",
            remedy="Correct N, or crop the frames as they are read: ReadConfig(crop_px=...).",
        )
    run = _limit_to_scan(settings.run, scan)
    folder = settings.output_dir if out is None else Path(out)
    with _open_run_folder(folder) as place:
        trained = train(scan, run, place, progress=progress)
        module = load_checkpoint(trained.checkpoint)
        told = read_history(place)
    bundle = None if folder is None else save_bundle(module, folder / BUNDLE)
    history = {name: [value for _, value in told[metric]] for name, metric in _HISTORY.items() if metric in told}
    models = {"autoencoder": module, "diffraction_to_obj": module}
    return {"history": history, "models": models, "backend": "pytorch", "bundle": bundle}


@contextlib.contextmanager
def _open_run_folder(folder: Path | None) -> Iterator[Path]:
    """A folder of its own for a run: kept inside `folder`, or for the time of the block."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=".torchptycho-") as place:
            yield Path(place) / "run"
        return
    names = (f"run{'' if number == 1 else f'_{number}'}" for number in range(1, 1_000_000))
    yield next(folder / name for name in names if not (folder / name).exists())


def _limit_to_scan(run: RunConfig, scan: Scan) -> RunConfig:
    """Numbers of frames and groups beyond what is left for training take all of them, as they do in the original."""
    group = run.group
    held_out = min(round(run.prepare.val_fraction * scan.n_frames), max(0, scan.n_frames - group.gridsize**2))
    left = scan.n_frames - held_out
    changes: dict[str, Any] = {}
    if group.n_subsample is not None and group.n_subsample >= left:
        changes["n_subsample"] = None
    else:
        left = group.n_subsample or left
    if group.n_groups is not None and group.n_groups > left and not group.oversample:
        changes["n_groups"] = None
    if changes:
        _log.warning(
            "%s: more wanted than the %d frames for training: %s; all are taken",
            scan.source,
            left,
            ", ".join(f"{name} {getattr(group, name)}" for name in changes),
        )
    return dataclasses.replace(run, group=dataclasses.replace(group, **changes))


def _get_scan_and_numbers(data: object) -> tuple[Scan, np.ndarray | None]:
    """The scan, and the number of each of its frames where a container has some of them only."""
    if isinstance(data, Scan):
        return data, None
    if isinstance(data, RawData):
        return data.scan, None
    if isinstance(data, PtychoDataContainer):
        return data.as_scan(), data.frames_used
    raise TypeError(f"data: expected a Scan, a RawData or a PtychoDataContainer; found {type(data).__name__}")


def _predict(
    module: PtychoPINN,
    data: tuple[Scan, np.ndarray | None],
    config: object | None,
    placement: _PatchPlacement,
    progress: bool,
    *,
    stitch: bool,
) -> Results:
    """What a module predicts for a scan, in the original's names; the image too, if wanted."""
    scan, numbers = data
    run = module.config if config is None else read_settings(config).run
    if run.group.gridsize != module.gridsize:
        raise ConfigError(f"gridsize: expected {module.gridsize}, as trained; found {run.group.gridsize}.")
    again = stitch and not placement.is_identity
    window = placement.make_window(module.n_px) if again and placement.M is not None else None
    # An image that is laid anew, or that nobody wants, need not be a good one.
    how = run.reconstruct if stitch and not again else dataclasses.replace(run.reconstruct, agree_phases=False)
    # The original predicts each group once.
    how = dataclasses.replace(how, predict_passes=1)
    keeper = _PatchCollector()
    image = reconstruct(
        module, scan, how, accelerator=module.config.train.accelerator, progress=progress, on_batch=keeper
    )
    members, patches = torch.cat(keeper.members), placement.transform_patches(torch.cat(keeper.patches))
    patches = patches * image.provenance.get("absolute_scale", {}).get("object_factor", 1.0)
    positions_px = placement.transform_positions(scan.positions_px)
    if again:
        weight = module.compute_stitch_weight(how.stitch_weight, how.training_scan).cpu() if window is None else window
        mosaic = PatchStitcher(
            torch.from_numpy(positions_px),
            placement.transform_patches(weight) if window is None else weight,
            agree_phases=run.reconstruct.agree_phases,
        )
        mosaic.add(patches, members, torch.cat(keeper.is_first))
        pixel_m = image.object_pixel_m if placement.scale == 1 else None
        image = mosaic.finish().finish(pixel_m, image.provenance)
    where = positions_px[members.numpy()]
    center = where.mean(axis=1)
    results: Results = {
        "obj_tensor_full": patches.numpy(),
        "global_offsets": original_layouts.offsets_from_centers(center),
        "coords_nominal": original_layouts.relative_from_offsets(where - center[:, None]).astype(np.float32),
        "nn_indices": members.numpy() if numbers is None else numbers[members.numpy()],
    }
    return results | (_make_image_results(image) if stitch else {})


def _make_image_results(image: Reconstruction) -> Results:
    return {"recon_amp": np.abs(image.object), "recon_phase": np.angle(image.object), "reconstruction": image}
