"""Pictures of how a network learns: the same few patches and the stitched scan, every few epochs."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.store import Store
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.stitcher import PatchStitcher
from torchptycho.training.loggers import send_image
from torchptycho.visualization.plot import plot_patches, plot_reconstruction

__all__ = ["TrainingImages"]


class TrainingImages(Callback):
    """Draws epoch-NNNN-patches.png and epoch-NNNN-scan.png into a folder, and gives them to the loggers.

    Held-out patches where there are any; of several scans the first is stitched. One process draws for all.

    Arguments:
        store: the training data.
        folder: for the PNG files.
        every_epochs: from one set to the next.
        n_patches: patches per image.
        batch_groups: groups in a forward pass.
    """

    def __init__(self, store: Store, folder: Path, every_epochs: int, n_patches: int, batch_groups: int) -> None:
        self._store, self._folder, self._every_epochs, self._groups_per_batch = (
            store,
            folder,
            every_epochs,
            batch_groups,
        )
        split = GroupDataset(store, "val", with_truth=store.has_truth)
        if not len(split):
            split = GroupDataset(store, "train", with_truth=store.has_truth)
        self._patch_batch = split.__getitems__(range(min(n_patches, len(split))))
        self._scan_dataset = GroupDataset(store, "predict")

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self._every_epochs:
            return
        assert isinstance(pl_module, PtychoPINN)
        was_training = pl_module.generator.training
        pl_module.generator.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            few = pl_module(self._patch_batch.to(pl_module.device))[:, 0].cpu().numpy()
            image = self._stitch(pl_module)
        pl_module.generator.train(was_training)
        truth = None if self._patch_batch.truth is None else self._patch_batch.truth[:, 0].numpy()
        weight = pl_module.compute_stitch_weight("probe", int(self._patch_batch.scan[0])).cpu().numpy()
        patches = plot_patches(few, self._folder / f"epoch-{epoch:04d}-patches.png", weight=weight, truth=truth)
        pictures = {"patches": patches}
        if image is not None:
            pictures["scan"] = plot_reconstruction(image, self._folder / f"epoch-{epoch:04d}-scan.png")
        for logger in trainer.loggers:
            for name, picture in pictures.items():
                send_image(logger, name, picture, trainer.global_step)

    def _stitch(self, module: PtychoPINN) -> Reconstruction | None:
        places = self._store.tensors["positions_px"]
        numbers = torch.nonzero(self._store.tensors["frame_scan"] == 0).ravel()
        first = int(numbers[0])
        mosaic = PatchStitcher(places[numbers], module.compute_stitch_weight("probe", 0))
        rows = self._scan_dataset.find_groups_in_scan(0)
        for start in range(0, len(rows), self._groups_per_batch):
            batch = self._scan_dataset.__getitems__(rows[start : start + self._groups_per_batch]).to(module.device)
            mosaic.add(module(batch), batch.members - first, batch.is_first)
        canvas = mosaic.finish()
        # Images that are not finite, or 0 everywhere, cannot be drawn; training reports the cause.
        drawn = bool(np.isfinite(canvas.numerator.cpu().numpy()).all()) and bool(canvas.numerator.abs().max() > 0)
        return canvas.finish(self._store.scans[0].object_pixel_m) if drawn else None
