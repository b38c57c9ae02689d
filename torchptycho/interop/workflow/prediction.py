"""Prediction of the patches of a scan, and their stitching with the original's options."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.inference_dataset import InferenceBatch
from torchptycho.interop import original_layouts
from torchptycho.interop.workflow.original_config import read_settings
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.reconstructors.stitcher import PatchStitcher

__all__ = ["PatchPlacement", "predict_patches"]

Results = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchPlacement:
    """How patches are placed on the canvas; see `reassemble_cdi_image`."""

    flip_x: bool
    flip_y: bool
    transpose: bool
    M: int | None
    scale: float = 1.0

    def transform_positions(self, positions_px: np.ndarray) -> Float64[np.ndarray, "*lead 2"]:
        """Flip and scale positions (y, x)."""
        signs = np.array([-1.0 if self.flip_y else 1.0, -1.0 if self.flip_x else 1.0])
        return np.asarray(positions_px * signs * self.scale)

    def transform_patches(self, patches: Tensor) -> Tensor:
        """Exchange rows and columns of the patches, if `transpose` is set."""
        return patches.mT.contiguous() if self.transpose else patches

    @property
    def is_identity(self) -> bool:
        """Whether patches are placed as `reconstruct` places them."""
        return not (self.flip_x or self.flip_y or self.transpose) and self.scale == 1 and self.M is None

    def make_window(self, n_px: int) -> Tensor:
        """Make the stitching weight [N, N], 1 on the central M x M pixels and 0 elsewhere.

        Raises:
            ConfigError: M is odd or not between 2 and N.
        """
        assert self.M is not None
        if not 2 <= self.M <= n_px or self.M % 2:
            raise ConfigError(f"M: expected an even number from 2 to N = {n_px}, or None; found {self.M}.")
        return torch.nn.functional.pad(torch.ones(self.M, self.M), ((n_px - self.M) // 2,) * 4)


class _PatchCollector:
    """Callback that keeps the predicted patches and the frames of their groups."""

    def __init__(self) -> None:
        self.patches: list[Tensor] = []
        self.members: list[Tensor] = []
        self.is_first: list[Tensor] = []

    def __call__(self, batch: InferenceBatch, patches: Tensor) -> None:
        # Copied through NumPy: tensors of inference mode cannot be used in later computations.
        self.patches.append(torch.from_numpy(patches.cpu().numpy().copy()))
        self.members.append(batch.members.cpu())
        self.is_first.append(batch.is_first.cpu())


def predict_patches(
    module: PtychoPINN,
    data: tuple[Scan, np.ndarray | None],
    config: object | None,
    placement: PatchPlacement,
    progress: bool,
    *,
    stitch: bool,
) -> Results:
    """Predict the patches of a scan and return them under the original's names; stitch them if asked to.

    Arguments:
        data: the scan, and the number of each of its frames in a larger scan; None numbers them from 0.
        config: whose section `reconstruct` is used; None uses the module's.
        stitch: add the image to the results.
    """
    scan, numbers = data
    run = module.config if config is None else read_settings(config).run
    if run.group.gridsize != module.gridsize:
        raise ConfigError(f"gridsize: expected {module.gridsize}, as trained; found {run.group.gridsize}.")
    restitch = stitch and not placement.is_identity
    window = placement.make_window(module.n_px) if restitch and placement.M is not None else None
    # `reconstruct` need not align phases for an image that is stitched restitch, or not used.
    options = run.reconstruct if stitch and not restitch else dataclasses.replace(run.reconstruct, agree_phases=False)
    # As in the original, each group is predicted once.
    options = dataclasses.replace(options, predict_passes=1)
    collector = _PatchCollector()
    image = reconstruct(
        module, scan, options, accelerator=module.config.train.accelerator, progress=progress, on_batch=collector
    )
    members, patches = torch.cat(collector.members), placement.transform_patches(torch.cat(collector.patches))
    patches = patches * image.provenance.get("absolute_scale", {}).get("object_factor", 1.0)
    positions_px = placement.transform_positions(scan.positions_px)
    if restitch:
        weight = (
            module.compute_stitch_weight(options.stitch_weight, options.training_scan).cpu()
            if window is None
            else window
        )
        stitcher = PatchStitcher(
            torch.from_numpy(positions_px),
            weight,
            agree_phases=run.reconstruct.agree_phases,
        )
        stitcher.add(patches, members, torch.cat(collector.is_first))
        pixel_m = image.object_pixel_m if placement.scale == 1 else None
        image = stitcher.finish().finish(pixel_m, image.provenance)
    grouped_px = positions_px[members.numpy()]
    center = grouped_px.mean(axis=1)
    results: Results = {
        "obj_tensor_full": patches.numpy(),
        "global_offsets": original_layouts.offsets_from_centers(center),
        "coords_nominal": original_layouts.relative_from_offsets(grouped_px - center[:, None]).astype(np.float32),
        "nn_indices": members.numpy() if numbers is None else numbers[members.numpy()],
    }
    return results | (_make_image_results(image) if stitch else {})


def _make_image_results(image: Reconstruction) -> Results:
    return {"recon_amp": np.abs(image.object), "recon_phase": np.angle(image.object), "reconstruction": image}
